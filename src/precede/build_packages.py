"""The optional packages that a build needs: adapters, trackers, tasks, fast sampling."""

from __future__ import annotations

import importlib.util

from precede.build_recipe import BuildRecipe

TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")
"""What transformers can report to, each a package of that name."""
EXTRAS = {"lm_eval": "pip install 'precede[eval]'"}
"""How a package is installed, where it is not by its own name."""


def packages(recipe: BuildRecipe) -> dict[str, str]:
    """Package → the setting that needs it. Raises ValueError for a tracker that is not known."""
    settings = recipe.settings
    found: dict[str, str] = {}
    for tracker in settings.report_to:
        if tracker not in TRACKERS:
            raise ValueError(f"report_to names '{tracker}', but the trackers are {', '.join(TRACKERS)}")
        found[tracker] = f"report_to {tracker}"
    if settings.evaluation.tasks:
        found["lm_eval"] = "evaluation.tasks"
    for name, stage in recipe.sequence():
        if stage.lora is not None:
            found["peft"] = f"{name}.lora"
            if stage.lora.quantization == "4bit":
                found["bitsandbytes"] = f"{name}.lora.quantization 4bit"
        if stage.trainer.get("use_vllm"):
            found["vllm"] = f"{name}.trainer.use_vllm"
    return found


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def check_packages(recipe: BuildRecipe) -> None:
    """Raise ValueError for an optional package that the recipe needs and that is not here."""
    for package, what in packages(recipe).items():
        if not installed(package):
            raise ValueError(
                f"{what} needs the package '{package}'; run `{EXTRAS.get(package, f'pip install {package}')}`"
            )

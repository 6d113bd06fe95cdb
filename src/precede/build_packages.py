"""The optional packages that a build needs: adapters, trackers, tasks, fast sampling."""

from __future__ import annotations

import importlib.util

from precede.build_recipe import BuildRecipe

TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")
"""What transformers can report to, each a package of that name."""


def check_packages(recipe: BuildRecipe) -> None:
    """Raise ValueError for an optional package that the recipe needs and that is not here."""
    settings = recipe.settings
    for tracker in settings.report_to:
        if tracker not in TRACKERS:
            raise ValueError(f"report_to names '{tracker}', but the trackers are {', '.join(TRACKERS)}")
        _need(tracker, f"report_to {tracker}")
    if settings.evaluation.tasks:
        _need("lm_eval", "evaluation.tasks", "pip install 'precede[eval]'")
    for name, stage in recipe.sequence():
        if stage.lora is not None:
            _need("peft", f"{name}.lora")
            if stage.lora.quantization == "4bit":
                _need("bitsandbytes", f"{name}.lora.quantization 4bit")
        if stage.trainer.get("use_vllm"):
            _need("vllm", f"{name}.trainer.use_vllm")


def _need(package: str, what: str, how: str | None = None) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{what} needs the package '{package}'; run `{how or f'pip install {package}'}`")

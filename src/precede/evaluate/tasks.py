"""What a model can do beside the preferences: tasks of lm-eval (the extra `eval`), before and after."""

from __future__ import annotations

import importlib
from typing import Any

from precede.data.sentences import first_line
from precede.libraries import quiet
from precede.models.load import load, pick_device


def run_tasks(
    source: str, tasks: list[str], folder: str | None, limit: int | None, device: str, batch_size: int = 8
) -> dict[str, dict[str, float]]:
    """Task → metric → value, as `lm_eval.simple_evaluate` finds them of the model at `source`, in fp32.

    `folder` has task files beside lm-eval's own; `limit` is documents per task. Raises ValueError where a task is not known,
    or its data cannot be had.
    """
    lm_eval = importlib.import_module("lm_eval")
    models = importlib.import_module("lm_eval.models.huggingface")
    manager = importlib.import_module("lm_eval.tasks").TaskManager(include_path=folder)
    model, tokenizer = load(source, pick_device(device))
    with quiet():
        try:
            output: Any = lm_eval.simple_evaluate(
                model=models.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
                tasks=tasks,
                task_manager=manager,
                limit=limit,
                bootstrap_iters=0,
                log_samples=False,
                verbosity="ERROR",
            )
        except Exception as error:  # tasks are programs with data sets of their own
            raise ValueError(f"lm-eval cannot run {', '.join(tasks)}: {first_line(error)}") from None
    results: dict[str, dict[str, float]] = {}
    for task, values in output["results"].items():
        numbers = {
            name: value for name, value in values.items() if isinstance(value, float | int) and "stderr" not in name
        }
        results[task] = {name.removesuffix(",none"): float(value) for name, value in numbers.items()}
    return results

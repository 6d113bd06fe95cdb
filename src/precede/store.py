"""Finished stages on disk: content-addressed, atomic, checksummed.

A stage is a value: (name, kind, settings, the stage it starts from, seeds, code version). Its key is a hash of exactly
that. A finished stage is one folder named by its key: weights as safetensors, `metrics.json`, `manifest.json`, and
`SHA256SUMS` in the format that `sha256sum -c` reads. The folder appears by one rename, so a killed run leaves either a
whole stage or none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CHECKSUMS = "SHA256SUMS"
KEY_LENGTH = 24
_HOST = socket.gethostname().replace("@", "_").replace("/", "_")


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True)
class Stage:
    """A stage as a value. `parent` is the stage it starts from; None for the teacher that a pipeline begins with."""

    name: str
    kind: str
    world: Mapping[str, Any]
    config: Mapping[str, Any]
    parent: Stage | None
    seeds: tuple[int, ...]
    version: int

    def description(self) -> dict[str, Any]:
        """What the key is a hash of, as JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "world": self.world,
            "config": self.config,
            "parent": self.parent.key if self.parent else None,
            "seeds": self.seeds,
            "version": self.version,
        }

    @cached_property
    def key(self) -> str:
        """Hexadecimal name of the stage, equal for equal stages and no others."""
        return hashlib.sha256(canonical_json(self.description()).encode()).hexdigest()[:KEY_LENGTH]

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and self.key == other.key

    def lineage(self) -> list[Stage]:
        """The stages from the first (the teacher) to this one."""
        return [*(self.parent.lineage() if self.parent else []), self]

    def root(self) -> Stage:
        """The teacher that the pipeline began with."""
        return self.lineage()[0]

    def source(self) -> Stage:
        """The parent of a stage that has one, which is every stage but the teacher that a pipeline begins with."""
        assert self.parent is not None
        return self.parent

    def reference(self) -> Stage:
        """What the alignment of an align stage is anchored to.

        With its setting `reference` at `teacher`, the model before the latest distillation upstream, if there was one;
        else the parent, the model that is being aligned.
        """
        original = self.before_distillation() if self.config["reference"] == "teacher" else None
        return original or self.source()

    def before_distillation(self) -> Stage | None:
        """The model that the current student was made from, upstream of this stage, if there was one.

        A distillation that goes on with a student (`start: parent`) makes none.
        """
        for stage in reversed(self.lineage()[:-1]):
            if stage.kind == "distill" and stage.config.get("start") != "parent":
                return stage.parent
        return None

    def taught_by(self) -> Stage:
        """What a distillation learns from: its source, or the model that its source was made from if it goes on with that."""
        original = self.before_distillation() if self.config.get("start") == "parent" else None
        return original or self.source()

    def distill_temperature(self) -> float | None:
        """τ of the latest distillation at or upstream of this stage, if there was one."""
        for stage in reversed(self.lineage()):
            if stage.kind == "distill":
                return float(stage.config["temperature"])
        return None

    def label(self) -> str:
        """For people: `teacher > distill > align (3f2a…)`."""
        return " > ".join(stage.name for stage in self.lineage()) + f" ({self.key[:8]})"


class Store:
    """A folder of finished stages. Safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._scratch = root / "unfinished"

    def prepare(self) -> None:
        """Make the folder, and remove what killed runs left in it. Raises ValueError where it cannot be written."""
        try:
            self._scratch.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._scratch):
                pass
        except OSError as error:
            raise ValueError(
                f"the store {self.root} cannot be written ({error.strerror}); name another folder with --store"
            ) from None
        for path in self._scratch.iterdir():
            host, _, rest = path.name.partition("@")
            pid = rest.partition("-")[0]
            if host == _HOST and pid.isdigit() and not _alive(int(pid)):
                shutil.rmtree(path, ignore_errors=True)

    def folder(self, stage: Stage) -> Path:
        """Where the finished stage lies, or would lie."""
        return self.root / stage.key[:2] / stage.key

    def has(self, stage: Stage) -> bool:
        return (self.folder(stage) / CHECKSUMS).is_file()

    def damage(self, stage: Stage) -> str | None:
        """None for a stage that is as it was when it was finished; else one clause that says what is wrong."""
        return _damage(self.folder(stage))

    def discard(self, stage: Stage) -> None:
        """Take a damaged stage out of the store. Another process may be doing the same, or have made it again already."""
        aside = self._scratch / f"{_HOST}@{os.getpid()}-{stage.key}"
        try:
            self.folder(stage).rename(aside)
        except FileNotFoundError:
            return
        if _damage(aside) is None:
            with suppress(OSError):
                aside.rename(self.folder(stage))
        shutil.rmtree(aside, ignore_errors=True)

    @contextmanager
    def writing(self, stage: Stage, libraries: tuple[str, ...] = ()) -> Iterator[Writer]:
        """A scratch folder for the stage; it becomes the finished stage when the block ends without an error."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{_HOST}@{os.getpid()}-", dir=self._scratch))
        try:
            writer = Writer(scratch)
            yield writer
            _write_json(scratch / "metrics.json", writer.metrics)
            _write_json(
                scratch / "manifest.json",
                {
                    "key": stage.key,
                    "stage": stage.description(),
                    "lineage": [ancestor.name for ancestor in stage.lineage()],
                    "cost": writer.cost,
                    "libraries": library_versions(*libraries),
                },
            )
            files = sorted(path for path in scratch.rglob("*") if path.is_file())
            sums = "".join(f"{_sha256(path)}  {path.relative_to(scratch).as_posix()}\n" for path in files)
            (scratch / CHECKSUMS).write_text(sums, "ascii")
            for path in (*files, scratch / CHECKSUMS):
                _sync(path)
            target = self.folder(stage)
            target.parent.mkdir(exist_ok=True)
            try:
                scratch.rename(target)
            except OSError:
                if not self.has(stage):  # another process may have finished the same stage first
                    raise
            _sync(target.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def metrics(self, stage: Stage) -> dict[str, list[float | None]]:
        """Metric → one value per seed, None where undefined."""
        result: dict[str, list[float | None]] = json.loads((self.folder(stage) / "metrics.json").read_text())
        return result

    def cost(self, stage: Stage) -> dict[str, float]:
        """Cost of the stage per seed; see `precede.metrics.Cost`."""
        result: dict[str, float] = json.loads((self.folder(stage) / "manifest.json").read_text())["cost"]
        return result


@dataclass
class Writer:
    """A stage being written: put weights into `folder`, and fill in `metrics` (per seed) and `cost`."""

    folder: Path
    metrics: dict[str, list[float | None]] = None  # type: ignore[assignment]
    cost: dict[str, float] = None  # type: ignore[assignment]


def full_disk(error: BaseException) -> str | None:
    """What the system says where it had no room for a file; None for any other error. Writers of weights say it in a text."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            return os.strerror(number)
    # torch.save's own words when its file does not grow
    torchs = ("PytorchStreamWriter failed", "unexpected pos")
    return os.strerror(errno.ENOSPC) if any(word in str(error) for word in torchs) else None


def _damage(folder: Path) -> str | None:
    try:
        lines = (folder / CHECKSUMS).read_text("ascii").splitlines()
    except (OSError, ValueError):
        return f"{CHECKSUMS} cannot be read"
    listed = {}
    for line in lines:
        digest, separator, name = line.partition("  ")
        if not separator:
            return f"{CHECKSUMS} is malformed"
        listed[name] = digest
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {CHECKSUMS}
    if found != set(listed):
        return f"files are missing or extra: {', '.join(sorted(found ^ set(listed)))}"
    for name, digest in listed.items():
        if _sha256(folder / name) != digest:
            return f"{name} does not match its checksum"
    return None


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False, default=dict), "utf-8")


def _sync(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def library_versions(*more: str) -> dict[str, str]:
    """Versions of this package, torch and numpy, and of the packages in `more`."""
    return {name: _version(name) for name in ("precede", "torch", "numpy", *more)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

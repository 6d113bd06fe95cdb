"""Finished work on disk: content-addressed, atomic, checksummed.

An entry is a value, and its key a hash of exactly that. A finished entry is one folder named by its key: its files (weights
as safetensors), `metrics.json`, `manifest.json`, and the checksums that seal it (`precede.files`). The folder appears by one
rename, so a killed run leaves either a whole entry or none. What work on an entry keeps between kills are sealed folders too.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from precede.files import CHECKSUMS, HOST, alive, damage, is_sealed, seal


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


class Entry(Protocol):
    """What a store keeps: something with a key, which is a hash of its description (`key_of`)."""

    @property
    def key(self) -> str:
        """Hexadecimal name, equal for equal entries and no others."""

    def description(self) -> Mapping[str, Any]:
        """What the key is a hash of, as JSON values."""

    def label(self) -> str:
        """What people call it."""


def key_of(description: Mapping[str, Any]) -> str:
    """The key of what is described so."""
    return hashlib.sha256(canonical_json(description).encode()).hexdigest()[:24]


class Store:
    """A folder of finished entries. Safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._scratch = root / "unfinished"
        self._between_kills = root / "checkpoints"
        self._locks = root / "locks"

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
            if host == HOST and pid.isdigit() and not alive(int(pid)):
                shutil.rmtree(path, ignore_errors=True)
        for path in self._between_kills.glob("*"):  # a run may have been killed when an entry had just been finished
            if is_sealed(self.root / path.name[:2] / path.name):
                shutil.rmtree(path, ignore_errors=True)

    def folder(self, entry: Entry) -> Path:
        """Where the finished entry lies, or would lie."""
        return self.root / entry.key[:2] / entry.key

    def checkpoints(self, entry: Entry) -> Path:
        """Where work on the entry is kept between kills; gone once the entry is finished."""
        return self._between_kills / entry.key

    def kept(self, entry: Entry) -> list[Path]:
        """The sealed folders, in that of `checkpoints`, that work on the entry can go on from: checkpoints and samples."""
        return [path for path in self._between(entry) if is_sealed(path)]

    def _between(self, entry: Entry) -> list[Path]:
        folder = self.checkpoints(entry)
        return sorted([*folder.glob("checkpoint-*"), *folder.glob("samples-*/*")])

    def mend(self, entry: Entry) -> list[str]:
        """Throw away what was kept between kills and is not whole. Returns a sentence for each that was damaged.

        What is not sealed was cut short by a kill, and is no damage. For who has claimed the entry.
        """
        told = []
        for path in self._between(entry):
            sealed, wrong = is_sealed(path), damage(path)
            if wrong is not None:
                shutil.rmtree(path, ignore_errors=True)
            if wrong is not None and sealed:
                name = path.relative_to(self.checkpoints(entry))
                told.append(f"stage {entry.label()}: {name} is damaged ({wrong}); it goes on from what is whole")
        return told

    @contextmanager
    def claimed(self, entries: Iterable[Entry]) -> Iterator[None]:
        """Keep entries to this process for a block; waits where another one has them. A process that ends claims nothing.

        By locks of the operating system; where the file system has none, two processes make an entry twice, and one is kept.
        """
        self._locks.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for key in sorted({entry.key for entry in entries}):  # in one order, so that no two wait for one another
                stack.enter_context(_locked(self._locks / key))
            yield

    def claimed_elsewhere(self, entry: Entry) -> bool:
        """Whether another process has claimed the entry now."""
        try:
            with (self._locks / entry.key).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def has(self, entry: Entry) -> bool:
        return is_sealed(self.folder(entry))

    def damage(self, entry: Entry) -> str | None:
        """None for an entry that is as it was when it was finished; else one clause that says what is wrong."""
        return _wrong(self.folder(entry), entry.key)

    def discard(self, entry: Entry) -> None:
        """Take a damaged entry out of the store. Another process may be doing the same, or have made it again already."""
        aside = self._scratch / f"{HOST}@{os.getpid()}-{entry.key}"
        try:
            self.folder(entry).rename(aside)
        except FileNotFoundError:
            return
        if _wrong(aside, entry.key) is None:
            with suppress(OSError):
                aside.rename(self.folder(entry))
        shutil.rmtree(aside, ignore_errors=True)

    @contextmanager
    def writing(self, entry: Entry, libraries: tuple[str, ...] = ()) -> Iterator[Writer]:
        """A scratch folder for the entry; it becomes the finished entry when the block ends without an error."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{HOST}@{os.getpid()}-", dir=self._scratch))
        try:
            writer = Writer(scratch)
            yield writer
            _write_json(scratch / "metrics.json", writer.metrics)
            made = {"key": entry.key, "label": entry.label(), "entry": entry.description(), "cost": writer.cost}
            _write_json(scratch / "manifest.json", made | {"libraries": library_versions(*libraries)})
            for path in (*seal(scratch), scratch / CHECKSUMS):
                _sync(path)
            target = self.folder(entry)
            target.parent.mkdir(exist_ok=True)
            try:
                scratch.rename(target)
            except OSError:
                if not self.has(entry):  # another process may have finished the same entry first
                    raise
            _sync(target.parent)
            shutil.rmtree(self.checkpoints(entry), ignore_errors=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def metrics(self, entry: Entry) -> dict[str, list[float | None]]:
        """Metric → one value per seed, None where undefined."""
        return dict(json.loads((self.folder(entry) / "metrics.json").read_text()))

    def cost(self, entry: Entry) -> dict[str, float]:
        """Cost of the entry per seed; see `precede.metrics.Cost`."""
        return dict(json.loads((self.folder(entry) / "manifest.json").read_text())["cost"])


@dataclass
class Writer:
    """An entry being written: put files into `folder`, and fill in `metrics` (per seed) and `cost`."""

    folder: Path
    metrics: dict[str, list[float | None]] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)


def full_disk(error: BaseException) -> str | None:
    """What the system says where it had no room for a file; None for any other error. Writers of weights say it in a text."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            return os.strerror(number)
    stuck = any(part in str(error) for part in ("PytorchStreamWriter failed", "unexpected pos"))  # torch.save says so
    return os.strerror(errno.ENOSPC) if stuck else None


def _wrong(folder: Path, key: str) -> str | None:
    """None for a folder that is the finished entry of this key, as it was when it was finished; else what is wrong."""
    if (wrong := damage(folder)) is not None:
        return wrong
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        if not isinstance(manifest["cost"], dict) or not isinstance(
            json.loads((folder / "metrics.json").read_text()), dict
        ):
            raise TypeError
        found = manifest["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest or metrics are not what this program writes"
    return None if found == key else f"the stage {found} lies in its place"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is there for that only and goes with it."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)  # who had it before has removed the file
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False, default=dict), "utf-8")


def _sync(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def library_versions(*more: str) -> dict[str, str]:
    """Versions of this package, torch and numpy, and of the packages in `more`."""
    versions = dict.fromkeys(("precede", "torch", "numpy", *more), "unknown")
    for package in versions:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions

"""The second job: say of references, before any training, whether they can be aligned to given preferences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precede.evaluate.audit import Audit
from precede.evaluate.audit import audit as judge
from precede.files import cache_folder
from precede.jobs.folders import choose, claim
from precede.report.audit_output import write_audit
from precede.store import Store


@dataclass(frozen=True)
class Written:
    """An audit, and the folder that has audit.html, audit.json, audit.yaml and pairs.parquet of it."""

    audit: Audit
    folder: Path


def audit(
    models: str | Sequence[str],
    data: str,
    *,
    out: Path | None = None,
    tell: Callable[[str], None] = lambda message: None,
    progress: Any = None,
    **options: Any,
) -> Written:
    """`precede.evaluate.audit.audit`, written into `out` (default `runs/audit`, or the next number where another run has that).

    What is scored and sampled is kept beside finished stages (`shelf`): an audit that was stopped goes on. audit.yaml in `out`
    says what was asked for. `tell` hears sentences. Raises ValueError as the audit does, and, before anything is scored, where
    `out` holds another run.
    """
    reward = options.get("reward")
    named = reward if isinstance(reward, str | None) else getattr(reward, "__name__", "f")
    names = [models] if isinstance(models, str) else list(models)
    asked = {"models": names, "data": data, **options, "reward": named}
    asked |= {"columns": dict(options.get("columns") or {})}
    choose("audit.yaml", asked, out, Path("runs/audit"))
    judged = judge(
        names, data, **options, tell=tell, store=shelf(), **({} if progress is None else {"progress": progress})
    )
    folder, notes = choose("audit.yaml", asked, out, Path("runs/audit"))
    claim(folder, "audit.yaml", asked)
    for note in notes:
        tell(note)
    write_audit(judged, folder)
    return Written(judged, folder)


def shelf() -> Store | None:
    """The store in the cache, where audits keep what they scored; none where it cannot be written."""
    store = Store(cache_folder() / "stages")
    try:
        store.prepare()
    except ValueError:
        return None
    return store

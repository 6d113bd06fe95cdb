"""The second job: say of references, before any training, whether they can be aligned to given preferences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from precede.evaluate.audit import Audit
from precede.evaluate.audit import audit as judge
from precede.report.audit_output import write_audit


def audit(*given: Any, out: Path | None = None, **options: Any) -> Audit:
    """`precede.evaluate.audit.audit`, with what it leaves (audit.html, audit.json, pairs.parquet) written into `out`."""
    judged = judge(*given, **options)
    if out is not None:
        write_audit(judged, out)
    return judged

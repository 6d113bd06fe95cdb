"""The machine that this runs on."""

from __future__ import annotations

import os
from contextlib import suppress


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy() -> str | None:
    """A sentence where more was running in the last minute, by the load average, than the machine has cores; else None."""
    with suppress(OSError, AttributeError):  # of a system that has no load average
        load = os.getloadavg()[0]
        if load > cores() + 0.5:
            return (
                f"the machine is busy, a load of {load:.1f} on {cores()} cores: this will take longer; costs give CPU seconds "
                "beside wall seconds"
            )
    return None

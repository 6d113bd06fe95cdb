"""The audit: can this reference be aligned to these preferences? `precede.audit(...)` is `precede.audit.audit.audit`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """So that `precede.audit(...)` is the job, and `precede.audit.signals` its parts, whichever is imported first."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from precede.audit.audit import audit

        return audit(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule

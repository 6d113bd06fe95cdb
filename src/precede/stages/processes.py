"""One job in several processes, as `accelerate launch` starts them: who writes, who waits, who does what."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

import torch

from precede.libraries import environment

T = TypeVar("T")
PATIENCE_SECONDS = 7 * 24 * 3600
"""How long the processes of one training wait for one another: the first measures and samples while the others wait."""


@cache
def _state() -> Any:
    accelerate = importlib.import_module("accelerate")
    gloo = {} if torch.cuda.is_available() else {"cpu": True}
    return accelerate.PartialState(timeout=timedelta(seconds=PATIENCE_SECONDS), **gloo)


def count() -> int:
    """How many processes there are; 1 where no launcher started them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return index() == 0


def wait() -> None:
    """Wait until every process is here."""
    if count() > 1:
        _state().wait_for_everyone()


def leave() -> None:
    """Part from the other processes, at the end of a program: whoever still holds a connection then is torn down noisily."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def first_does(work: Callable[[], T]) -> T:
    """The value of `work` (picklable), done by the first process while the others wait. Raises ValueError in each if it did."""
    if count() == 1:
        return work()
    _state()
    done: list[Any] = [None]
    if is_first():
        try:
            done = [(work(), None)]
        except (ValueError, OSError) as error:
            done = [(None, str(error))]
    value, problem = importlib.import_module("accelerate.utils").broadcast_object_list(done)[0]
    if problem is not None:
        raise ValueError(problem)
    return cast(T, value)


def whole_weights() -> AbstractContextManager[None]:
    """Let every process load all weights of a model, for sampling and measuring.

    FSDP's memory-saving mode reads them in the first process only, which is right for what is sharded afterwards.
    """
    return environment(FSDP_CPU_RAM_EFFICIENT_LOADING=None)

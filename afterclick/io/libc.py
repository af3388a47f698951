"""What the C library and the kernel do for a process, where they can: on Linux, with glibc."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_M_ARENA_MAX: Final = -8
_M_MMAP_THRESHOLD: Final = -3


def end_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """A function that a child calls first: the kernel then sends it a signal when the thread that
    started it ends. None where the kernel cannot.
    """
    if sys.platform != "linux":
        return None
    prctl, parent = _libc().prctl, os.getpid()

    def request() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # the parent ended before the request
            os._exit(1)

    return request


def keep_heap_small() -> None:
    """Let few threads share a heap, and take blocks from 1 MiB on from the system.

    By default there are eight heaps per core, and freed blocks of up to 32 MiB stay in them.
    """
    with suppress(AttributeError):
        _libc().mallopt(_M_ARENA_MAX, 2)
        _libc().mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def trim_heap() -> None:
    """Return unused pages of all heaps to the system; allocations of other threads may wait."""
    with suppress(AttributeError):
        _libc().malloc_trim(0)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)

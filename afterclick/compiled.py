"""Functions compiled to machine code by numba, on their first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])
_ANY_ORDER = {"reassoc", "contract", "nsz"}
"""NaN and infinity keep their meaning."""


def compiled(function: Function) -> Function:
    """Compile a function of arrays and numbers; strict IEEE arithmetic, no bounds checks.

    The machine code is kept on disk (NUMBA_CACHE_DIR, else next to the source or in the user's
    cache folder), so that only the first process compiles. Whatever serves requests calls the
    function once before the API is ready: compiling takes a second.
    """
    return _compiled(function)


def compiled_sums(function: Function) -> Function:
    """`compiled`, but sums may be added in any order: inner products become vector instructions."""
    return _compiled(function, _ANY_ORDER)


def _compiled(function: Function, fastmath: bool | set[str] = False) -> Function:
    try:
        return cast(Function, njit(cache=True, fastmath=fastmath)(function))
    except RuntimeError:  # no folder is writable: every process compiles
        return cast(Function, njit(fastmath=fastmath)(function))

"""Count the lines of Python that a block runs: a measure of work, whatever the machine's speed."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass
class TracedLines:
    """Lines run so far; array arithmetic counts as one."""

    count: int = 0


@contextmanager
def traced_lines() -> Iterator[TracedLines]:
    """Count the lines that this thread runs within the block.

    Garbage is not collected meanwhile: the finalizers of other objects would be counted.
    """
    lines = TracedLines()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        lines.count += event == "line"
        return trace

    before = sys.gettrace()
    gc.disable()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)
        gc.enable()

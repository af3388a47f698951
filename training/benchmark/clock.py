"""Time for training: no pass begins that would not end in time."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class Clock:
    """Ends a training in time: no new epoch starts that would not end before `seconds` are over."""

    seconds: float
    start: float = 0.0
    epochs: int = 0

    def __post_init__(self) -> None:
        self.start = time.monotonic()

    def more(self, most: int) -> bool:
        """Whether another epoch may start; at least one may."""
        spent = time.monotonic() - self.start
        fits = self.epochs == 0 or spent * (self.epochs + 1) / self.epochs <= self.seconds
        go = self.epochs < most and fits
        self.epochs += go
        return go

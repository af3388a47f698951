"""When an iterative fit ends: a time budget, and early stopping on validation rows. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class TimeBudget:
    """Allows no epoch that would end after `seconds`; the first one ends when they are used up."""

    seconds: float
    start: float = 0.0
    epochs: int = 0

    def __post_init__(self) -> None:
        self.start = time.monotonic()

    def allows(self, max_epochs: int) -> bool:
        """Whether another epoch may start, and count it. The first one always may."""
        total = self.elapsed() * (self.epochs + 1) / max(self.epochs, 1)
        fits = self.epochs == 0 or total <= self.seconds
        allowed = self.epochs < max_epochs and fits
        self.epochs += allowed
        return allowed

    @property
    def used_up(self) -> bool:
        """Whether a running epoch must end."""
        return self.elapsed() > self.seconds

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def resume(self, epochs: int, elapsed: float) -> None:
        """Continue after a number of epochs and seconds of another process."""
        self.epochs, self.start = epochs, time.monotonic() - elapsed


@dataclass
class EarlyStopping:
    """Measures a model after every epoch and stops it when it no longer improves."""

    measure: Callable[[], float]
    patience: int = 5
    best: float = -1.0
    best_epochs: int = 0
    epochs: int = 0

    @property
    def rising(self) -> bool:
        """Whether the last epoch was the best one so far."""
        return self.best_epochs == self.epochs

    def cut_off(self, max_epochs: int) -> bool:
        """Whether the fit ran out of time before `max_epochs` and before its patience ended."""
        return self.epochs < max_epochs and self.epochs - self.best_epochs < self.patience

    def over(self, epochs: int) -> bool:
        """Whether the last `patience` epochs did not improve on the best before them."""
        self.epochs, value = epochs, self.measure()
        if value > self.best:
            self.best, self.best_epochs = value, epochs
        return epochs - self.best_epochs >= self.patience

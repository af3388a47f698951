"""Early stopping on the validation rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Watch:
    """Looks at a model after every epoch, and stops it where it no longer gets better."""

    look: Callable[[], float]
    patience: int = 5
    best: float = -1.0
    best_epochs: int = 0
    epochs: int = 0

    @property
    def rising(self) -> bool:
        """Whether the last epoch was the best: training ended for want of time, and may go on."""
        return self.best_epochs == self.epochs

    def cut_off(self, most: int) -> bool:
        """Whether training ended before its `most` epochs, and not because it got no better."""
        return self.epochs < most and self.epochs - self.best_epochs < self.patience

    def over(self, epochs: int) -> bool:
        """Whether the last `patience` epochs were no better than the best before them."""
        self.epochs, value = epochs, self.look()
        if value > self.best:
            self.best, self.best_epochs = value, epochs
        return epochs - self.best_epochs >= self.patience

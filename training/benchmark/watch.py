"""Early stopping on the validation rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Watch:
    """Looks at a model after every epoch, and stops it where it no longer gets better."""

    look: Callable[[], float]
    patience: int = 3
    best: float = -1.0
    best_epochs: int = 0

    def over(self, epochs: int) -> bool:
        """Whether the last `patience` epochs were no better than the best before them."""
        value = self.look()
        if value > self.best:
            self.best, self.best_epochs = value, epochs
        return epochs - self.best_epochs >= self.patience

"""The sequence model on published splits, whose targets have no times.

The inputs say nothing of time but the order: without times, a user's items are one set, in another
random order in every epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import FloatArray
from training.config import TowerConfig
from training.interactions import Interactions, runs
from training.models.sequence_batches import Sequences
from training.models.sequence_training import ItemInputs, Training
from training.models.stopping import EarlyStopping


@dataclass
class SequenceModel:
    """Predicts the next item, or of a set another item."""

    sequential: ClassVar[bool] = True
    dim: int = 64
    """Width of the block and of the vectors."""
    temperature: float = 0.1
    """Divides the cosines."""
    dropout: float = 0.4
    """Of the inputs and of both residual branches."""
    rate: float = 0.002
    """Adam's learning rate."""
    length: int = 50
    """Newest items of a history that are read."""
    epochs: int = 40
    """Maximum; the search keeps the best number on the validation rows, if it saw a decline."""
    seconds: float = 240.0
    """Time budget: no epoch starts that would end later, and none goes on beyond it."""

    def fit(self, rows: Interactions, seed: int, stopping: EarlyStopping | None = None) -> None:
        config = TowerConfig(
            dim=self.dim,
            temperature=self.temperature,
            dropout=self.dropout,
            rate=self.rate,
            length=self.length,
            epochs=self.epochs,
            seconds=self.seconds,
            validation=0,
            seed=seed,
        )
        self.observe(rows)
        several = Sequences.of(_ordered(rows))
        self._training = Training(several, ItemInputs(), len(rows.item_ids), config)
        self._training.run(stopping=stopping)

    def observe(self, rows: Interactions) -> None:
        """Take newer histories without another fit."""
        self._known = Sequences.all_of(_ordered(rows))

    def scores(self, users: NDArray[np.intp]) -> FloatArray:
        first, end = (np.searchsorted(self._known.user, users, s) for s in ("left", "right"))
        network = self._training.network
        popularity = (network.beta * network.log_popularity).detach().cpu().numpy()
        scores = np.repeat(popularity[None], len(users), axis=0)
        active = end > first
        if active.any():
            scores[active] = self._training.scores(self._known, first[active], end[active])
        return np.asarray(scores)


def _ordered(rows: Interactions) -> Interactions:
    """The rows with the number of their set, by time, instead of the time."""
    order = np.lexsort((rows.time_ms, rows.user))
    start, _ = runs(rows.user[order], rows.time_ms[order])
    number = np.empty(len(rows), np.int64)
    number[order] = start
    return replace(rows, time_ms=number)

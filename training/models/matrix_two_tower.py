"""Two towers: a user is what they have (and who they are), an item its embedding; softmax over items.

The user tower is the mean of the embeddings of the user's items, the one to be predicted left out, plus the
user's own embedding; so a new event moves the vector at once, and a new user has one. With a linear tower the
vector of a live history is a weighted sum of rows, which NumPy computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.models.neural import Batches, Negatives, Optimiser, Table, softmax_loss
from training.models.stopping import EarlyStopping, TimeBudget


class MatrixTowers(nn.Module):
    """Embeddings of both towers, of length 1 before they meet."""

    def __init__(self, users: int, items: int, dim: int, own: float) -> None:
        super().__init__()
        self.item, self.user = Table(items, dim, dim**-0.5), Table(users, dim, dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(items))
        self.own = own

    def users(self, user: Tensor, total: Tensor, count: Tensor) -> Tensor:
        """(b, dim) unit vectors from the sum (b, dim) and number (b,) of the past items' embeddings."""
        mean = total / count.clamp(min=1.0)[:, None]
        return nn.functional.normalize(
            mean + self.own * self.user(user) if self.own else mean, dim=1
        )

    def items(self, item: Tensor) -> Tensor:
        """(n, dim) unit vectors."""
        return nn.functional.normalize(self.item(item), dim=1)


@dataclass
class TwoTower:
    """Trained by sampled softmax with logQ correction; all items where the catalogue is small."""

    dim: int = 64
    """Width of both towers."""
    temperature: float = 0.25
    """Cosines are divided by this."""
    own: float = 0.0
    """Weight of the user's own embedding beside that of their items."""
    dropout: float = 0.5
    """Share of a user's items left out of the tower at random."""
    decay: float = 0.003
    """AdamW's weight decay: what a weight loses in an epoch."""
    rate: float = 0.003
    """Learning rate."""
    epochs: int = 40
    """At most; the search keeps as many as were best on the validation rows, if it saw them get worse."""
    batch: int = 1024
    sample: int = 1024
    """Sampled items per batch where there are too many for all."""
    seconds: float = 240.0
    """No epoch starts that would end later."""

    def fit(self, train: Any, seed: int, stopping: EarlyStopping | None = None) -> None:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        self._train = train.tocsr()
        self._towers = MatrixTowers(train.shape[0], train.shape[1], self.dim, self.own)
        batches = Batches.of(train, self.batch)
        optimiser = Optimiser(self._towers, self.rate, self.decay, len(batches))
        count = np.asarray(train.sum(axis=0), np.float32).ravel()
        negatives = Negatives(count, self.sample, generator)
        budget = TimeBudget(self.seconds)
        while budget.allows(self.epochs):
            for user, item in batches.epoch(generator):
                optimiser.step(self._loss(user, item, negatives, generator))
            self._freeze()
            if stopping is not None and stopping.over(budget.epochs):
                break

    def _loss(
        self, user: Tensor, item: Tensor, negatives: Negatives, generator: torch.Generator
    ) -> Tensor:
        towers = self._towers
        vectors = towers.users(user, *self._past(user, item, generator))
        items, off = negatives.draw()
        logits = vectors @ towers.items(items).T / self.temperature + towers.bias[items]
        positive = (vectors * towers.items(item)).sum(1) / self.temperature + towers.bias[item]
        return softmax_loss(logits, positive, items, item, off, negatives.all)

    def _past(
        self, user: Tensor, item: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Sum and number of the other items of each user, some of them dropped."""
        rows = self._train[user.numpy()]
        column = torch.from_numpy(rows.indices.astype(np.int64))
        owner = torch.repeat_interleave(torch.from_numpy(np.diff(rows.indptr).astype(np.int64)))
        kept = column != item[owner]
        kept &= torch.rand(len(kept), generator=generator) >= self.dropout
        count = torch.bincount(owner[kept], minlength=len(user))
        return self._towers.item.sums(column[kept], count.cumsum(0) - count), count.float()

    @torch.no_grad()
    def _freeze(self) -> None:
        """Keep what scoring needs as NumPy arrays."""
        towers = self._towers
        self._past_of, self._user_of = towers.item.current().numpy(), towers.user.current().numpy()
        self._items = towers.items(torch.arange(self._train.shape[1])).numpy() / self.temperature
        self._bias = towers.bias.numpy()

    def vectors(self, users: NDArray[np.intp]) -> NDArray[np.float32]:
        """(b, dim) unit vectors, in NumPy: what serving would compute from a live history."""
        rows = self._train[users]
        count = np.maximum(np.diff(rows.indptr), 1)[:, None]
        vectors = (rows @ self._past_of) / count + self.own * self._user_of[users]
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(length, 1e-12), np.float32)

    def scores(self, users: NDArray[np.intp]) -> NDArray[np.float32]:
        return np.asarray(self.vectors(users) @ self._items.T + self._bias, np.float32)

"""The two-tower model of published splits: predicts each item from the user's other items.

A user is the mean of their items, and optionally an embedding of their own; the logit is the cosine
of user and item over a temperature, plus the item's bias. Items begin as their rows in an SVD of
PPMI co-occurrence. Sampled softmax, with the logits less the log of how often an item is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from afterclick.arrays import FloatArray
from training.models.neural import (
    Batches,
    BestNetwork,
    Negatives,
    Optimiser,
    Table,
    softmax_loss,
)
from training.models.ppmi import item_vectors
from training.models.stopping import EarlyStopping, TimeBudget


class MatrixTowers(nn.Module):
    """Towers over sets of items; one table embeds items on both sides."""

    def __init__(self, train: Any, config: TwoTower, seed: int) -> None:
        super().__init__()
        users, items = train.shape
        item, user = (Table(rows, config.dim, config.dim**-0.5) for rows in (items, users))
        owners = np.repeat(np.arange(users), np.diff(train.indptr)).astype(np.int32)
        start = torch.from_numpy(item_vectors(owners, train.indices, items, config.dim, seed))
        known = start.any(dim=1)
        with torch.no_grad():
            item.weight[known] = start[known]
        self.past, self.user, self.user_weight = item, user, config.own
        self.bias, self.temperature = nn.Parameter(torch.zeros(items)), config.temperature

    def items(self, item: Tensor) -> Tensor:
        """(n, dim) unit vectors."""
        return nn.functional.normalize(self.past(item), dim=1)

    def logits(self, users: Tensor, item: Tensor) -> Tensor:
        """(b, n) of every user vector (b, dim) for every item (n,)."""
        return users @ self.items(item).T / self.temperature + self.bias[item]

    def pair_logits(self, users: Tensor, item: Tensor) -> Tensor:
        """(b,) of each user vector (b, dim) for the item (b,) in the same row."""
        return (users * self.items(item)).sum(1) / self.temperature + self.bias[item]

    def users(self, user: Tensor, total: Tensor, count: Tensor) -> Tensor:
        """(b, dim) unit vectors from the sum (b, dim) and number (b,) of the past items."""
        mean = total / count.clamp(min=1.0)[:, None]
        if self.user_weight:
            mean = mean + self.user_weight * self.user(user)
        return nn.functional.normalize(mean, dim=1)


@dataclass
class TwoTower:
    """The model of published splits: predicts each item from the user's other items."""

    dim: int = 64
    """Width of both towers."""
    temperature: float = 0.25
    """Divides the cosines."""
    own: float = 0.0
    """Weight of the user's own embedding, added to the mean of their items."""
    dropout: float = 0.5
    """Share of a user's items dropped at random."""
    decay: float = 0.003
    """AdamW's weight decay per epoch."""
    rate: float = 0.003
    """Learning rate."""
    epochs: int = 40
    """Maximum; the search keeps the best number on the validation rows, if it saw a decline."""
    batch: int = 1024
    sample: int = 1024
    """Sampled items per batch, if there are too many for all."""
    seconds: float = 240.0
    """Time budget: no epoch starts that would end later, and none goes on beyond it."""

    def fit(self, train: Any, seed: int, stopping: EarlyStopping | None = None) -> None:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        self._train = train.tocsr()
        self._towers = MatrixTowers(self._train, self, seed)
        batches = Batches.of(train, self.batch)
        optimiser = Optimiser(self._towers, self.rate, self.decay, len(batches))
        count = np.asarray(train.sum(axis=0), np.float32).ravel()
        negatives = Negatives(count, self.sample, generator)
        budget, best = TimeBudget(self.seconds), BestNetwork(self._towers, stopping)
        while budget.allows(self.epochs):
            for user, item in batches.epoch(generator):
                users = self._towers.users(user, *self._past(user, item, generator))
                sampled = negatives.draw()
                logits = self._towers.logits(users, sampled.items)
                positive = self._towers.pair_logits(users, item)
                optimiser.step(softmax_loss(logits, positive, item, sampled))
                if budget.used_up:
                    break
            self._freeze()
            if best.over(budget.epochs, self._towers):
                break
        self._towers = best.network
        self._freeze()

    def _past(
        self, user: Tensor, item: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Sum and number of the other items of each user after dropout."""
        rows = self._train[user.numpy()]
        column = torch.from_numpy(rows.indices.astype(np.int64))
        owner = torch.repeat_interleave(torch.from_numpy(np.diff(rows.indptr).astype(np.int64)))
        kept = column != item[owner]
        kept &= torch.rand(len(kept), generator=generator) >= self.dropout
        count = torch.bincount(owner[kept], minlength=len(user))
        return self._towers.past.sums(column[kept], count.cumsum(0) - count), count.float()

    @torch.no_grad()
    def _freeze(self) -> None:
        """Keep as NumPy arrays what scoring needs."""
        towers = self._towers
        self._past_of, self._user_of = towers.past.current().numpy(), towers.user.current().numpy()
        self._items = towers.items(torch.arange(self._train.shape[1])).numpy() / self.temperature
        self._bias = towers.bias.numpy()

    def vectors(self, users: NDArray[np.intp]) -> FloatArray:
        """(b, dim) unit vectors of users, in NumPy."""
        rows = self._train[users]
        count = np.maximum(np.diff(rows.indptr), 1)[:, None]
        vectors = (rows @ self._past_of) / count + self.own * self._user_of[users]
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(length, 1e-12), np.float32)

    def scores(self, users: NDArray[np.intp]) -> FloatArray:
        return np.asarray(self.vectors(users) @ self._items.T + self._bias, np.float32)

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

from training.benchmark.clock import Clock
from training.benchmark.neural import Batches, Negatives, adam, softmax_loss
from training.benchmark.watch import Watch


class Towers(nn.Module):
    """Embeddings of both towers, of length 1 before they meet."""

    def __init__(self, users: int, items: int, dim: int, own: float) -> None:
        super().__init__()
        self.item = nn.Embedding(items, dim)
        self.user = nn.Embedding(users, dim)
        self.bias = nn.Parameter(torch.zeros(items))
        self.own = own
        for table in (self.item, self.user):
            nn.init.normal_(table.weight, std=dim**-0.5)

    def users(self, user: Tensor, total: Tensor, count: Tensor) -> Tensor:
        """(b, dim) unit vectors from the sum (b, dim) and number (b,) of the past items' embeddings."""
        mean = total / count.clamp(min=1.0)[:, None]
        return nn.functional.normalize(mean + self.own * self.user(user), dim=1)

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
    decay: float = 1e-4
    """AdamW's weight decay, per step."""
    rate: float = 0.003
    """Learning rate."""
    epochs: int = 40
    """At most; the search keeps as many as were best on the validation rows."""
    batch: int = 1024
    sample: int = 2048
    """Sampled items per batch where there are too many for all."""
    seconds: float = 240.0
    """No epoch starts that would end later."""

    def fit(self, train: Any, seed: int, watch: Watch | None = None) -> None:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        self._train = train.tocsr()
        self._towers = Towers(train.shape[0], train.shape[1], self.dim, self.own)
        optimiser = adam(self._towers, self.rate, self.decay)
        batches = Batches.of(train, self.batch)
        count = np.asarray(train.sum(axis=0), np.float32).ravel()
        negatives = Negatives(count, self.sample, generator)
        clock = Clock(self.seconds)
        while clock.more(self.epochs):
            for user, item in batches.epoch(generator):
                optimiser.zero_grad()
                self._loss(user, item, negatives, generator).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            self._freeze()
            if watch is not None and watch.over(clock.epochs):
                break

    def _loss(self, user: Tensor, item: Tensor, negatives: Negatives, generator: torch.Generator) -> Tensor:
        towers = self._towers
        vectors = towers.users(user, *self._past(user, item, generator))
        items, off = negatives.draw()
        logits = vectors @ towers.items(items).T / self.temperature + towers.bias[items]
        positive = (vectors * towers.items(item)).sum(1) / self.temperature + towers.bias[item]
        return softmax_loss(logits, positive, items, item, off, negatives.all)

    def _past(self, user: Tensor, item: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sum and number of the other items of each user, some of them dropped."""
        rows = self._train[user.numpy()]
        row = np.repeat(np.arange(len(user)), np.diff(rows.indptr))
        column = torch.from_numpy(rows.indices.astype(np.int64))
        index = torch.from_numpy(row.astype(np.int64))
        kept = column != item[index]
        kept &= torch.rand(len(kept), generator=generator) >= self.dropout
        index, column = index[kept], column[kept]
        total = torch.zeros(len(user), self.dim).index_add(0, index, self._towers.item(column))
        return total, torch.bincount(index, minlength=len(user)).float()

    @torch.no_grad()
    def _freeze(self) -> None:
        """Keep what scoring needs as NumPy arrays."""
        towers = self._towers
        self._items = towers.items(torch.arange(self._train.shape[1])).numpy() / self.temperature
        self._bias = towers.bias.numpy()
        self._past_of, self._user_of = towers.item.weight.numpy(), towers.user.weight.numpy()

    def vectors(self, users: NDArray[np.intp]) -> NDArray[np.float32]:
        """(b, dim) unit vectors, in NumPy: what serving would compute from a live history."""
        rows = self._train[users]
        count = np.maximum(np.diff(rows.indptr), 1)[:, None]
        vectors = (rows @ self._past_of) / count + self.own * self._user_of[users]
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(length, 1e-12), np.float32)

    def scores(self, users: NDArray[np.intp]) -> NDArray[np.float32]:
        return np.asarray(self.vectors(users) @ self._items.T + self._bias, np.float32)

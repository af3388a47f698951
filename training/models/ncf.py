"""NCF: NeuMF (He et al., WWW 2017), a generalised product and an MLP of user and item, learned by a
sampled softmax.

The first layer of the MLP on (user, item) is a sum of a user part and an item part, so a batch is
scored against all shared negatives without repeating either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.models.neural import (
    Batches,
    BestNetwork,
    Negatives,
    Optimiser,
    Table,
    softmax_loss,
)
from training.models.stopping import EarlyStopping, TimeBudget


class NeuMf(nn.Module):
    """Logits of users for items."""

    def __init__(self, users: int, items: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.user, self.item = Table(users, dim, 0.1), Table(items, dim, 0.1)
        self.mlp_user, self.mlp_item = Table(users, hidden, 0.1), Table(items, hidden, 0.1)
        self.bias = Table(items, 1, 0.0)
        self.middle = nn.Linear(hidden, hidden // 2)
        self.last = nn.Linear(hidden // 2, 1, bias=False)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """(b, n) logits of every user with every item."""
        product = self.user(user) @ self.item(item).T
        hidden = torch.relu(self.mlp_user(user)[:, None, :] + self.mlp_item(item)[None, :, :])
        deep = self.last(torch.relu(self.middle(hidden)))[:, :, 0]
        return torch.as_tensor(product + deep + self.bias(item)[:, 0])

    def pairs(self, user: Tensor, item: Tensor) -> Tensor:
        """(b,) logits of each user with the item in the same row."""
        product = (self.user(user) * self.item(item)).sum(1)
        hidden = torch.relu(self.mlp_user(user) + self.mlp_item(item))
        deep = self.last(torch.relu(self.middle(hidden)))[:, 0]
        return torch.as_tensor(product + deep + self.bias(item)[:, 0])


@dataclass
class Ncf:
    """NeuMF trained by sampled softmax with many shared negatives."""

    dim: int = 64
    """Width of the product's embeddings."""
    hidden: int = 16
    """Width of the MLP's first layer."""
    decay: float = 0.27
    """AdamW's weight decay per epoch."""
    rate: float = 0.003
    """Learning rate, at batches of `batch`."""
    epochs: int = 30
    """Maximum; the search keeps the best number on the validation rows, if it saw a decline."""
    batch: int = 512
    sample: int = 128
    """Sampled items per batch."""
    seconds: float = 240.0
    """Time budget: no epoch starts that would end later."""

    def fit(self, train: Any, seed: int, stopping: EarlyStopping | None = None) -> None:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        self._items = train.shape[1]
        self._net = NeuMf(train.shape[0], train.shape[1], self.dim, self.hidden)
        batches = Batches.of(train, self.batch)
        # the linear scaling rule (Goyal et al., 2017): fewer steps, each larger
        rate = self.rate * batches.size / self.batch
        optimiser = Optimiser(self._net, rate, self.decay, len(batches))
        negatives = Negatives(
            np.asarray(train.sum(axis=0), np.float32).ravel(), self.sample, generator
        )
        negatives.all = False  # the MLP is sampled even in a small catalogue
        budget, best = TimeBudget(self.seconds), BestNetwork(self._net, stopping)
        while budget.allows(self.epochs):
            for user, item in batches.epoch(generator):
                sampled = negatives.draw()
                logits, positive = self._net(user, sampled.items), self._net.pairs(user, item)
                optimiser.step(softmax_loss(logits, positive, item, sampled))
            if best.over(budget.epochs, self._net):
                break
        self._net = best.network

    @torch.no_grad()
    def scores(self, users: NDArray[np.intp]) -> NDArray[np.float32]:
        """(b, n_items), in steps of some users, since the MLP is wide."""
        everything = torch.arange(self._items)
        step = max(1, 4_000_000 // (self._items * self.hidden))
        parts = torch.split(torch.from_numpy(np.asarray(users, np.int64)), step)
        return np.concatenate([self._net(part, everything).numpy() for part in parts]).astype(
            np.float32
        )

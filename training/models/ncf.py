"""NCF: NeuMF (He et al., WWW 2017), a generalised product and an MLP of user and item, learned by a
sampled softmax.

The first layer of the MLP on (user, item) is a sum of a user part and an item part, so a batch is
scored against all shared negatives without repeating either.

`HistoryNeuMf` is served: both user parts are sums over the recent history, each item weighted by
its action and by a learned weight of its age (FISM: Kabbur et al., KDD 2013), so a live event
changes them without a gradient step (`afterclick.ncf.NcfArrays`). `Ncf` is for published splits
without times: an embedding of each user.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from afterclick.arrays import FloatArray, IndexArray
from afterclick.ncf import UNKNOWN, NcfArrays
from afterclick.sequence_encoder import AGES_DAYS
from afterclick.trends import DAY_MS
from training.config import NcfConfig
from training.interactions import Interactions
from training.models import ppmi
from training.models.history_examples import HistoryExamples
from training.models.neural import (
    Batches,
    BestNetwork,
    Negatives,
    Optimiser,
    Table,
    softmax_loss,
)
from training.models.stopping import EarlyStopping, TimeBudget

MIN_STEPS = 50
"""Steps of an epoch; a small log gets smaller batches."""


class NeuMf(nn.Module):
    """Logits of users for items; a user has a vector for the product and one for the MLP."""

    def __init__(self, items: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.item, self.mlp_item = Table(items, dim, 0.1), Table(items, hidden, 0.1)
        self.bias = Table(items, 1, 0.0)
        self.middle = nn.Linear(hidden, hidden // 2)
        self.last = nn.Linear(hidden // 2, 1, bias=False)

    def items(self, item: Tensor) -> Tensor:
        """(n, dim) vectors of the product."""
        return torch.as_tensor(self.item(item))

    def products(self, product: Tensor, item: Tensor) -> Tensor:
        """(b, n) the product of every user (b, dim) with every item (n,), and the item's bias."""
        return torch.as_tensor(product @ self.items(item).T + self.bias(item)[:, 0])

    def pair_products(self, product: Tensor, item: Tensor) -> Tensor:
        """(b,) the same of each user with the item (b,) in the same row."""
        return torch.as_tensor((product * self.items(item)).sum(1) + self.bias(item)[:, 0])

    def deep(self, user: Tensor, item: Tensor) -> Tensor:
        """(b, n) the MLP's part for every user (b, hidden) and item (n,)."""
        return self._layers(user[:, None, :] + self.mlp_item(item)[None, :, :])

    def pair_deep(self, user: Tensor, item: Tensor) -> Tensor:
        """(b,) the same for each user and the item (b,) in the same row."""
        return self._layers(user + self.mlp_item(item))

    def _layers(self, first: Tensor) -> Tensor:
        found = self.last(torch.relu(self.middle(torch.relu(first))))
        return torch.as_tensor(found.squeeze(-1))


class HistoryNeuMf(NeuMf):
    """Users are histories. `start` (n_items, dim) are the first item vectors.

    The product is that of two unit vectors over a temperature.
    """

    def __init__(self, start: FloatArray, config: NcfConfig) -> None:
        n_items = len(start)
        super().__init__(n_items, config.dim, config.hidden)
        self.history = Table(n_items + 1, config.dim, config.dim**-0.5)
        self.mlp_history = Table(n_items + 1, config.hidden, 0.1)
        self.ages = nn.Parameter(torch.zeros(len(AGES_DAYS) + 1))
        self.temperature = config.temperature
        known = torch.from_numpy(start.any(axis=1))
        with torch.no_grad():
            self.history.weight[:-1][known] = torch.from_numpy(start)[known]
            self.item.weight.copy_(self.history.weight[:-1])

    def items(self, item: Tensor) -> Tensor:
        return nn.functional.normalize(self.item(item), dim=1) / self.temperature

    def users(self, history: Tensor, weight: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """(b, dim) unit vectors and (b, hidden) means from items (b, h), action weights (b, h) and
        age buckets (b, h). A weight of 0 pads."""
        decayed = weight * torch.exp(self.ages)[age]
        product = (self._rows(self.history, history) * decayed[:, :, None]).sum(1)
        mlp = (self._rows(self.mlp_history, history) * decayed[:, :, None]).sum(1)
        total = decayed.sum(1, keepdim=True).clamp(min=1e-9)
        return nn.functional.normalize(product, dim=1), mlp / total

    @staticmethod
    def _rows(table: Table, row: Tensor) -> Tensor:
        return torch.as_tensor(table(row.ravel())).view(*row.shape, -1)

    @torch.no_grad()
    def export(self) -> NcfArrays:
        """The arrays that serving computes with."""
        n_items = len(self.bias.weight)
        every = torch.arange(n_items)
        history = torch.cat([self.history.current(), self.mlp_history.current()], 1)
        layers = [self.middle.weight, self.middle.bias[:, None], self.last.weight.T]
        return NcfArrays(
            history=history[:n_items].numpy(),
            targets=torch.cat([self.items(every), self.bias.current()], 1).numpy(),
            hidden=self.mlp_item.current().numpy().copy(),
            layers=torch.cat(layers, 1).numpy(),
            ages=torch.exp(self.ages).numpy(),
        )


def fit(rows: Interactions, config: NcfConfig) -> NcfArrays | None:
    """The served NCF, learned from `rows` (in order of time); None if no user has two items with
    enough interactions."""
    known = rows.item_counts() >= config.min_interactions
    frequent = rows.choose(known)
    examples = HistoryExamples.of(frequent)
    if not len(examples):
        return None
    order = np.lexsort((frequent.time_ms, frequent.user))
    start = ppmi.item_vectors(
        frequent.user[order], frequent.item[order], int(known.sum()), config.dim, config.seed
    )
    learned = train(examples, start, config).export()

    def every(array: FloatArray) -> FloatArray:
        rows_of_all = np.zeros((len(known), array.shape[1]), np.float32)
        rows_of_all[known] = array
        return rows_of_all

    targets = every(learned.targets)
    targets[~known, -1] = UNKNOWN
    return NcfArrays(
        every(learned.history), targets, every(learned.hidden), learned.layers, learned.ages
    )


def train(examples: HistoryExamples, start: FloatArray, config: NcfConfig) -> HistoryNeuMf:
    """The network learned from examples; `start` (n_items, dim) are the first item vectors.

    Two losses: of the product alone against all negatives of a batch, so that it can be searched
    by itself, and of product and MLP against the first few, since the MLP is wide. The learning
    rate falls to zero.
    """
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    network, random = HistoryNeuMf(start, config), np.random.default_rng(config.seed)
    share = _target_shares(examples, config.half_life_days)
    size = max(1, min(config.batch, len(examples) // MIN_STEPS))
    steps = max(1, len(examples) // size)
    optimiser = Optimiser(network, config.rate, config.decay, steps)
    expected = np.bincount(examples.item[examples.targets], share, minlength=len(start))
    negatives = Negatives(
        (expected * len(examples)).astype(np.float32),
        config.sample,
        torch.Generator().manual_seed(config.seed),
    )
    negatives.all = False  # the MLP is sampled even in a small catalogue
    for step, chosen in enumerate(_batches(share, config.epochs * steps, size, random)):
        optimiser.scale(1.0 - step / (config.epochs * steps))
        optimiser.step(_loss(network, examples, chosen, (negatives, random, config)))
    return network


def _target_shares(examples: HistoryExamples, half_life_days: float) -> NDArray[np.float64]:
    """(n,) probability of each example to be drawn: newer ones more often."""
    time_ms = examples.time_ms[examples.targets]
    share = np.exp2((time_ms - time_ms.max()) / (half_life_days * DAY_MS))
    return np.asarray(share / share.sum())


def _batches(
    share: NDArray[np.float64], count: int, size: int, random: np.random.Generator
) -> Iterator[IndexArray]:
    """`count` batches of numbers of examples, drawn by their shares (n,)."""
    cumulated = np.cumsum(share)
    for _ in range(count):
        points = random.random(size)
        yield np.minimum(np.searchsorted(cumulated, points), len(share) - 1)


def _loss(
    network: HistoryNeuMf,
    examples: HistoryExamples,
    chosen: IndexArray,
    draws: tuple[Negatives, np.random.Generator, NcfConfig],
) -> Tensor:
    negatives, random, config = draws
    batch = examples.batch(chosen, random)
    kept = random.random(batch.history.shape) >= config.dropout
    kept[:, 0] = True  # the newest item
    kept &= batch.history >= 0
    padding = len(network.bias.weight)
    product, mlp = network.users(
        torch.from_numpy(np.where(kept, batch.history, padding).astype(np.int64)),
        torch.from_numpy(np.where(kept, batch.weight, np.float32(0.0))),
        torch.from_numpy(batch.age.astype(np.int64)),
    )
    target, sampled = torch.from_numpy(batch.target.astype(np.int64)), negatives.draw()
    own = examples.owned(chosen, sampled.items.numpy())  # a user's other items are no negatives
    logits = network.products(product, sampled.items).masked_fill(torch.from_numpy(own), -1e9)
    positive = network.pair_products(product, target)
    few = sampled.first(config.deep_sample)
    deep = logits[:, : config.deep_sample] + network.deep(mlp, few.items)
    return softmax_loss(logits, positive, target, sampled) + softmax_loss(
        deep, positive + network.pair_deep(mlp, target), target, few
    )


class UserNeuMf(NeuMf):
    """Users are embeddings of their own."""

    def __init__(self, users: int, items: int, dim: int, hidden: int) -> None:
        super().__init__(items, dim, hidden)
        self.user, self.mlp_user = Table(users, dim, 0.1), Table(users, hidden, 0.1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """(b, n) logits of every user with every item."""
        product = self.products(self.user(user), item)
        return product + self.deep(self.mlp_user(user), item)

    def pairs(self, user: Tensor, item: Tensor) -> Tensor:
        """(b,) logits of each user with the item in the same row."""
        product = self.pair_products(self.user(user), item)
        return product + self.pair_deep(self.mlp_user(user), item)


@dataclass
class Ncf:
    """NeuMF of published splits."""

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
    """Time budget: no epoch starts that would end later, and none goes on beyond it."""

    def fit(self, train: Any, seed: int, stopping: EarlyStopping | None = None) -> None:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        self._items = train.shape[1]
        self._net = UserNeuMf(train.shape[0], train.shape[1], self.dim, self.hidden)
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
                if budget.used_up:
                    break
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

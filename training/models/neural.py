"""NCF, and the parts it shares with the two-tower model: batches, negatives, sampled softmax,
embedding tables, optimiser.

AdamW (Loshchilov & Hutter, ICLR 2019) moves every row of a table at every step: by weight decay,
and by what is left of the row's last gradients. In a table of 50,000 rows of which a batch uses a
thousand, that is nearly all of the work. Here a row moves only when a batch uses it, and then
catches up at once: over g steps without a gradient the decay d leaves (1 - d)^g of it, and the
moments m and v, which fade by β₁ and β₂, move it by the sum over k = 1…g of rate · m/√v · rᵏ(1 -
d)^(g-k), r = β₁/√β₂: a geometric series. One approximation: Adam's correction for its start is
taken halfway through the time that m lasts.

NCF is NeuMF (He et al., WWW 2017), a generalised product and an MLP of user and item, with a modern
loss. The first layer of the MLP on (user, item) is a sum of a user part and an item part, so a
batch is scored against all shared negatives without repeating either.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.models.stopping import EarlyStopping, TimeBudget

FULL_BELOW = 3000
"""Up to this many items the softmax is over all of them, else over sampled ones."""

STEPS = 350
"""Maximum of steps per epoch."""


@dataclass(frozen=True)
class Batches:
    """The interactions of a training matrix in random batches."""

    user: Tensor
    item: Tensor
    size: int

    @classmethod
    def of(cls, train: Any, size: int) -> Batches:
        """Batches of `size`, or larger ones if an epoch would exceed STEPS."""
        rows = train.tocoo()
        user = torch.from_numpy(rows.row.astype(np.int64))
        item = torch.from_numpy(rows.col.astype(np.int64))
        return cls(user, item, max(size, -(-len(user) // STEPS)))

    def __len__(self) -> int:
        return -(-len(self.user) // self.size)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Every interaction once."""
        order = torch.randperm(len(self.user), generator=generator)
        for batch in torch.split(order, self.size):
            yield self.user[batch], self.item[batch]


class Sampled(NamedTuple):
    """Items that a batch is scored against."""

    items: Tensor
    """(n,)"""
    correction: Tensor
    """(n,) subtracted from their logits"""
    full: bool
    """All items, in order."""


class Negatives:
    """Negative items: all of them, or a sample with its log expected count (the logQ correction).

    Sampling: half by popularity^0.5, half uniform (Yi et al., RecSys 2019, use the batch; a shared
    sample does the same with a known distribution).
    """

    def __init__(self, count: NDArray[np.float32], sample: int, generator: torch.Generator) -> None:
        self.all = len(count) <= max(sample, FULL_BELOW)
        weight = np.sqrt(count + 1e-3)
        share = 0.5 * weight / weight.sum() + 0.5 / len(count)
        self._cumulated = torch.from_numpy(np.cumsum(share))
        self._log = torch.from_numpy(np.log(share).astype(np.float32))
        self._sample, self._generator, self._items = sample, generator, len(count)

    def draw(self) -> Sampled:
        """The negatives of one batch."""
        if self.all:
            return Sampled(torch.arange(self._items), torch.zeros(self._items), full=True)
        points = torch.rand(self._sample, generator=self._generator, dtype=torch.float64)
        items = torch.searchsorted(self._cumulated, points).clamp(max=self._items - 1)
        return Sampled(items, self._log[items] + float(np.log(self._sample)), full=False)


def softmax_loss(logits: Tensor, positive: Tensor, target: Tensor, sampled: Sampled) -> Tensor:
    """Cross entropy of the targets (b,): `logits` (b, n) of the sample, `positive` (b,) of them.

    With a full softmax the target is one of the items; with a sample it is added to them, and an
    accidental draw of it is masked.
    """
    if sampled.full:
        return nn.functional.cross_entropy(logits, target)
    accidental = sampled.items[None, :] == target[:, None]
    logits = (logits - sampled.correction).masked_fill(accidental, -1e9)
    return (torch.logsumexp(torch.cat([positive[:, None], logits], 1), 1) - positive).mean()


_BETA_1, _BETA_2, _EPS = 0.9, 0.999, 1e-8
_FADE: float = _BETA_1 / _BETA_2**0.5
_LASTS = 10.0
"""Steps that a first moment lasts, 1 / (1 - β₁)."""


class Table(nn.Module):
    """An embedding table (rows, dim) with sparse gradients and lazy AdamW."""

    def __init__(self, rows: int, dim: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, dim).normal_(std=std))
        self._first, self._second = torch.zeros(rows, dim), torch.zeros(rows, dim)
        self._done = torch.zeros(rows, dtype=torch.int64)
        """(rows,) steps applied to each row"""
        self._steps = 0
        self.rate = self.decay = 0.0

    def forward(self, row: Tensor) -> Tensor:
        """(n, dim) the rows (n,), up to date."""
        self._catch_up(row)
        return nn.functional.embedding(row, self.weight, sparse=True)

    def sums(self, row: Tensor, start: Tensor) -> Tensor:
        """(b, dim) the sum of each bag of rows; bags are contiguous and begin at `start` (b,)."""
        self._catch_up(torch.unique(row))
        return nn.functional.embedding_bag(row, self.weight, start, mode="sum", sparse=True)

    @torch.no_grad()
    def current(self) -> Tensor:
        """(rows, dim) the whole table, up to date."""
        self._catch_up(torch.arange(len(self.weight)))
        return self.weight.detach()

    @torch.no_grad()
    def step(self) -> None:
        """One step of AdamW for all rows: those with a gradient now, the others when used."""
        self._steps += 1
        if self.weight.grad is None:
            return
        gradient = self.weight.grad.coalesce()
        self.weight.grad = None
        row, gradient_values = gradient.indices()[0], gradient.values()
        first = self._first[row].lerp_(gradient_values, 1 - _BETA_1)
        second = self._second[row].lerp_(gradient_values.square(), 1 - _BETA_2)
        self._first[row], self._second[row] = first, second
        correction = (1 - _BETA_2**self._steps) ** 0.5 / (1 - _BETA_1**self._steps)
        step_size = first.div_(second.sqrt_().add_(_EPS)).mul_(self.rate * correction)
        self.weight[row] = self.weight[row].mul_(1 - self.decay).sub_(step_size)
        self._done[row] = self._steps

    @torch.no_grad()
    def _catch_up(self, row: Tensor) -> None:
        """Apply the steps that the rows have missed."""
        behind = self._steps - self._done[row]
        row, behind = row[behind > 0], behind[behind > 0]
        if not len(row):
            return
        gap = behind[:, None].float()
        first, second = self._first[row], self._second[row]
        decayed, ratio = (1 - self.decay) ** gap, _FADE / (1 - self.decay)
        series = decayed * ratio * (1 - ratio**gap) / (1 - ratio)
        step_size = first / (second.sqrt() + _EPS) * series * self._scale(self._done[row], gap)
        # a repeated row gets the same values twice
        self.weight[row] = self.weight[row] * decayed - step_size
        self._first[row], self._second[row] = first * _BETA_1**gap, second * _BETA_2**gap
        self._done[row] = self._steps

    def _scale(self, done: Tensor, gap: Tensor) -> Tensor:
        """(n, 1) the rate halfway through what m lasts, with Adam's correction for its start."""
        step = done[:, None] + gap.clamp(max=2 * _LASTS) / 2
        return self.rate * (1 - _BETA_2**step).sqrt() / (1 - _BETA_1**step)


class Optimiser:
    """AdamW for a model of tables and dense parameters.

    `decay` is the share that a weight without gradients loses in an epoch of `steps`: per epoch, so
    that it does not depend on the number of users.
    """

    def __init__(self, model: nn.Module, rate: float, decay: float, steps: int) -> None:
        lost = 1 - (1 - decay) ** (1 / steps)
        self._tables = [module for module in model.modules() if isinstance(module, Table)]
        for table in self._tables:
            table.rate, table.decay = rate, lost
        self._dense = torch.optim.AdamW(
            _others(model, self._tables),
            lr=rate,
            weight_decay=lost / rate,
            betas=(_BETA_1, _BETA_2),
            eps=_EPS,
        )

    def step(self, loss: Tensor) -> None:
        """One step of gradient descent on a loss."""
        self._dense.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._dense.step()
        for table in self._tables:
            table.step()


def _others(model: nn.Module, tables: Iterable[Table]) -> list[nn.Parameter]:
    weights = {id(table.weight) for table in tables}
    return [parameter for parameter in model.parameters() if id(parameter) not in weights]


NetworkT = TypeVar("NetworkT", bound=nn.Module)


@dataclass
class BestNetwork(Generic[NetworkT]):
    """The network of the best epoch, however a fit ends; without `stopping` of the last one."""

    network: NetworkT
    stopping: EarlyStopping | None = None

    def over(self, epochs: int, network: NetworkT) -> bool:
        """Measure the network after an epoch, copy the best one; whether the fit ends."""
        if self.stopping is None:
            return False
        over = self.stopping.over(epochs)
        if self.stopping.rising:
            self.network = copy.deepcopy(network)
        return over


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

"""What NCF and the two-tower model share: batches, negatives, sampled softmax, embedding tables,
optimiser.

AdamW (Loshchilov & Hutter, ICLR 2019) moves every row of a table at every step: by weight decay,
and by what is left of the row's last gradients. In a table of 50,000 rows of which a batch uses a
thousand, that is nearly all of the work. Here a row moves only when a batch uses it, and then
catches up at once: over g steps without a gradient the decay d leaves (1 - d)^g of it, and the
moments m and v, which fade by β₁ and β₂, move it by the sum over k = 1…g of rate · m/√v · rᵏ(1 -
d)^(g-k), r = β₁/√β₂: a geometric series. One approximation: Adam's correction for its start is
taken halfway through the time that m lasts.
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

from training.models.stopping import EarlyStopping

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

    def first(self, count: int) -> Sampled:
        """The first `count` of a sample."""
        # every draw has the same distribution, so only the sample's size changes the correction
        less = float(np.log(max(1, len(self.items)) / max(1, min(count, len(self.items)))))
        return Sampled(self.items[:count], self.correction[:count] - less, full=False)


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
        self._rate = rate

    def scale(self, share: float) -> None:
        """The learning rate of the next steps, as a share of the first one."""
        for table in self._tables:
            table.rate = share * self._rate
        for group in self._dense.param_groups:
            group["lr"] = share * self._rate

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

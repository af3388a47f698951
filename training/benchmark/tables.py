"""AdamW for embedding tables, at the price of the rows that a batch meets.

AdamW (Loshchilov & Hutter, ICLR 2019) moves every row of a table at every step: by weight decay, and by what
is left of the row's last gradients. In a table of 50,000 rows of which a batch meets a thousand that is
nearly all of the work. Here a row lies still until a batch meets it, and is then caught up in one: over g
steps without a gradient the decay d leaves (1 - d)^g of it, and the moments m and v, which fade by β₁ and β₂,
move it by the sum over k = 1…g of rate · m/√v · rᵏ(1 - d)^(g-k), r = β₁/√β₂: a geometric series. The one
thing that is approximate is Adam's correction for its start, taken as it was halfway through what m lasts.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_BETA_1, _BETA_2, _EPS = 0.9, 0.999, 1e-8
_FADE: float = _BETA_1 / _BETA_2**0.5
_LASTS = 10.0
"""Steps that a first moment lasts, 1 / (1 - β₁)."""


class Table(nn.Module):
    """An embedding table (rows, dim) whose gradients are those of the rows that were asked for."""

    def __init__(self, rows: int, dim: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, dim).normal_(std=std))
        self._first, self._second = torch.zeros(rows, dim), torch.zeros(rows, dim)
        self._done = torch.zeros(rows, dtype=torch.int64)
        """(rows,) steps that each row has gone through"""
        self._steps = 0
        self.rate = self.decay = 0.0

    def forward(self, row: Tensor) -> Tensor:
        """(n, dim) the rows (n,), as they are now."""
        self._catch_up(row)
        return nn.functional.embedding(row, self.weight, sparse=True)

    def sums(self, row: Tensor, start: Tensor) -> Tensor:
        """(b, dim) the sum of each bag of rows; the bags lie behind one another, from `start` (b,) on."""
        self._catch_up(torch.unique(row))
        return nn.functional.embedding_bag(row, self.weight, start, mode="sum", sparse=True)

    @torch.no_grad()
    def current(self) -> Tensor:
        """(rows, dim) the whole table, as it is now."""
        self._catch_up(torch.arange(len(self.weight)))
        return self.weight.detach()

    @torch.no_grad()
    def step(self) -> None:
        """One step of AdamW for all rows: those with a gradient now, the others when they are met."""
        self._steps += 1
        if self.weight.grad is None:
            return
        gradient = self.weight.grad.coalesce()
        self.weight.grad = None
        row, slope = gradient.indices()[0], gradient.values()
        first = self._first[row].lerp_(slope, 1 - _BETA_1)
        second = self._second[row].lerp_(slope.square(), 1 - _BETA_2)
        self._first[row], self._second[row] = first, second
        correction = (1 - _BETA_2**self._steps) ** 0.5 / (1 - _BETA_1**self._steps)
        moved = first.div_(second.sqrt_().add_(_EPS)).mul_(self.rate * correction)
        self.weight[row] = self.weight[row].mul_(1 - self.decay).sub_(moved)
        self._done[row] = self._steps

    @torch.no_grad()
    def _catch_up(self, row: Tensor) -> None:
        """Let the rows go through the steps that they have missed."""
        behind = self._steps - self._done[row]
        row, behind = row[behind > 0], behind[behind > 0]
        if not len(row):
            return
        gap = behind[:, None].float()
        first, second = self._first[row], self._second[row]
        kept, ratio = (1 - self.decay) ** gap, _FADE / (1 - self.decay)
        series = kept * ratio * (1 - ratio**gap) / (1 - ratio)
        moved = first / (second.sqrt() + _EPS) * series * self._scale(self._done[row], gap)
        # a row that is there twice gets the same values twice
        self.weight[row] = self.weight[row] * kept - moved
        self._first[row], self._second[row] = first * _BETA_1**gap, second * _BETA_2**gap
        self._done[row] = self._steps

    def _scale(self, done: Tensor, gap: Tensor) -> Tensor:
        """(n, 1) the rate halfway through what m lasts, with Adam's correction for its start."""
        step = done[:, None] + gap.clamp(max=2 * _LASTS) / 2
        return self.rate * (1 - _BETA_2**step).sqrt() / (1 - _BETA_1**step)


class Optimiser:
    """AdamW for a model of tables and dense parameters.

    `decay` is the share that a weight without gradients loses in an epoch of `steps`: per epoch, for the
    interactions of one user in an epoch are as many however many users there are.
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
        """Go against the slope of a loss."""
        self._dense.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._dense.step()
        for table in self._tables:
            table.step()


def _others(model: nn.Module, tables: Iterable[Table]) -> list[nn.Parameter]:
    weights = {id(table.weight) for table in tables}
    return [parameter for parameter in model.parameters() if id(parameter) not in weights]

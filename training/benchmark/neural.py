"""What the two neural models share: batches of interactions and sampled softmax."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FULL_BELOW = 3000
"""Up to this many items the softmax is over all of them; beyond, over sampled ones."""

STEPS = 350
"""Most steps of an epoch."""


@dataclass(frozen=True)
class Batches:
    """The interactions of a training matrix in random batches."""

    user: Tensor
    item: Tensor
    size: int

    @classmethod
    def of(cls, train: Any, size: int) -> Batches:
        """Batches of `size`, or larger ones where an epoch would have more than STEPS."""
        rows = train.tocoo()
        user = torch.from_numpy(rows.row.astype(np.int64))
        item = torch.from_numpy(rows.col.astype(np.int64))
        return cls(user, item, max(size, -(-len(user) // STEPS)))

    def __len__(self) -> int:
        return -(-len(self.user) // self.size)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Every interaction once."""
        order = torch.randperm(len(self.user), generator=generator)
        for some in torch.split(order, self.size):
            yield self.user[some], self.item[some]


class Negatives:
    """Items to compare with: all of them, or a sample with its log expected count (the logQ correction).

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

    def draw(self) -> tuple[Tensor, Tensor]:
        """Items (n,) and what to take off their logits (n,)."""
        if self.all:
            return torch.arange(self._items), torch.zeros(self._items)
        points = torch.rand(self._sample, generator=self._generator, dtype=torch.float64)
        items = torch.searchsorted(self._cumulated, points).clamp(max=self._items - 1)
        return items, self._log[items] + float(np.log(self._sample))


def softmax_loss(
    logits: Tensor, positive: Tensor, items: Tensor, target: Tensor, off: Tensor, full: bool
) -> Tensor:
    """Cross entropy of the target among `items`; `logits` (b, n) of them, `positive` (b,) of the target.

    With a full softmax the target is one of the items; with a sample it stands beside them, and where it was
    drawn by accident it is masked.
    """
    if full:
        return nn.functional.cross_entropy(logits, target)
    logits = (logits - off).masked_fill(items[None, :] == target[:, None], -1e9)
    return (torch.logsumexp(torch.cat([positive[:, None], logits], 1), 1) - positive).mean()

"""Two towers over time: a user is their recent history, an item its id and its text; in NumPy at last.

The user tower adds up the history's embeddings, each times its action's weight and a learned weight of its
age, and scales the sum to length 1; the item tower is the item's embedding plus its text's, of length 1 too.
So serving has a user's vector from the live history by one weighted sum (afterclick/model.py), no torch.

Learned by sampled softmax over the batch's own targets and uniform items (Yi et al., RecSys 2019): logits
less the log of how often an item is drawn, accidental hits masked, cosines over a temperature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from afterclick.model import AGES_DAYS, TOWER_HISTORY, UNKNOWN_BIAS, TowerArrays
from afterclick.trends import DAY_MS
from training.config import TowerConfig
from training.interactions import Interactions


@dataclass(frozen=True)
class TowerExamples:
    """What each user did before each of their interactions."""

    history: NDArray[np.int32]
    """(n, TOWER_HISTORY) item indices, newest first; -1 pads"""
    weight: NDArray[np.float32]
    """(n, TOWER_HISTORY) of the action"""
    age: NDArray[np.int8]
    """(n, TOWER_HISTORY) number of the age's bucket"""
    target: NDArray[np.int32]
    """(n,)"""
    time_ms: NDArray[np.int64]
    """(n,) of the target"""

    @classmethod
    def of(cls, rows: Interactions) -> TowerExamples:
        """Every interaction that has another one of its user before it."""
        order = np.argsort(rows.user, kind="stable")
        user, item, time = rows.user[order], rows.item[order], rows.time_ms[order]
        n = len(order)
        start = np.searchsorted(user, user)
        place = np.arange(n) - start
        wanted = np.flatnonzero(place > 0)
        before = wanted[:, None] - 1 - np.arange(TOWER_HISTORY)
        there = before >= start[wanted][:, None]
        before = np.where(there, before, 0)
        days = (time[wanted][:, None] - time[before]) / DAY_MS
        return cls(
            np.where(there, item[before], -1).astype(np.int32),
            np.where(there, rows.weight[order][before], 0.0).astype(np.float32),
            np.searchsorted(AGES_DAYS, days, side="right").astype(np.int8),
            item[wanted].astype(np.int32),
            time[wanted],
        )

    def __len__(self) -> int:
        return len(self.target)


class TowerNetwork(nn.Module):
    """Both towers; `texts` (n, d) are the items' content embeddings, zeros where there is no text."""

    def __init__(self, items: int, dim: int, texts: Tensor | None) -> None:
        super().__init__()
        self.history = nn.Embedding(items + 1, dim, padding_idx=items)
        self.item = nn.Embedding(items, dim)
        self.bias = nn.Parameter(torch.zeros(items))
        self.ages = nn.Parameter(torch.zeros(len(AGES_DAYS) + 1))
        self.texts = texts
        self.text = nn.Linear(texts.shape[1], dim, bias=False) if texts is not None else None
        nn.init.normal_(self.item.weight, std=dim**-0.5)
        with torch.no_grad():
            self.history.weight[:-1] = self.item.weight

    def users(self, history: Tensor, weight: Tensor, age: Tensor) -> Tensor:
        """(b, dim) unit vectors from items (b, h), action weights (b, h) and age buckets (b, h)."""
        decayed = weight * torch.exp(self.ages)[age]
        return nn.functional.normalize((self.history(history) * decayed[:, :, None]).sum(1), dim=1)

    def items(self, item: Tensor) -> Tensor:
        """(n, dim) unit vectors."""
        vector = self.item(item)
        if self.text is not None and self.texts is not None:
            vector = vector + self.text(self.texts[item])
        return nn.functional.normalize(vector, dim=1)

    @torch.no_grad()
    def export(self, temperature: float) -> TowerArrays:
        """What serving computes with."""
        items = self.items(torch.arange(len(self.bias))) / temperature
        return TowerArrays(
            history=self.history.weight[:-1].numpy().copy(),
            targets=torch.cat([items, self.bias[:, None]], 1).numpy(),
            ages=torch.exp(self.ages).numpy(),
        )


def fit(
    rows: Interactions, config: TowerConfig, texts: NDArray[np.float32] | None = None
) -> TowerArrays | None:
    """Learn both towers from `rows` (in order of time); None where no user has two items with `least`.

    `texts` (n_items, d) are the items' content embeddings.
    """
    known = rows.item_counts() >= config.min_interactions
    frequent = rows.choose(known)
    examples = TowerExamples.of(frequent)
    if not len(examples):
        return None
    towers = train(
        examples, len(frequent.item_ids), config, None if texts is None else texts[known]
    )
    learned = towers.export(config.temperature)
    history = np.zeros((len(known), config.dim), np.float32)
    targets = np.zeros((len(known), config.dim + 1), np.float32)
    targets[:, -1] = UNKNOWN_BIAS
    history[known], targets[known] = learned.history, learned.targets
    return TowerArrays(history, targets, learned.ages)


def train(
    examples: TowerExamples,
    items: int,
    config: TowerConfig,
    texts: NDArray[np.float32] | None = None,
) -> TowerNetwork:
    """The towers as torch has them, learned from examples."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    towers = TowerNetwork(items, config.dim, None if texts is None else torch.from_numpy(texts))
    optimiser = torch.optim.AdamW(
        towers.parameters(), lr=config.rate, weight_decay=config.decay / config.rate
    )
    draws = _Draws(examples, items, config)
    steps = config.epochs * max(1, len(examples) // config.batch)
    warm_up = max(0.1, 2 / (steps + 1))  # of one step at least: torch divides by what is less
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.rate, total_steps=steps + 1, pct_start=warm_up
    )
    for chosen in draws.batches(steps):
        optimiser.zero_grad()
        _loss(towers, examples, chosen, draws, config).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return towers


class _Draws:
    """Random batches and negatives, and how often each item is among them."""

    def __init__(self, examples: TowerExamples, items: int, config: TowerConfig) -> None:
        self.random = np.random.default_rng(config.seed)
        decayed = np.exp2(
            (examples.time_ms - examples.time_ms.max()) / (config.half_life_days * DAY_MS)
        )
        self._cumulated = np.cumsum(decayed / decayed.sum())
        self._items, self._config, self._size = items, config, len(examples)
        share = np.bincount(examples.target, decayed / decayed.sum(), minlength=items)
        expected = config.batch * share + config.uniform / items
        self.log_expected = torch.from_numpy(np.log(np.maximum(expected, 1e-12)).astype(np.float32))

    def batches(self, count: int) -> Iterator[NDArray[np.intp]]:
        """Rows of the examples, newer ones more often."""
        for _ in range(count):
            points = self.random.random(self._config.batch)
            yield np.minimum(np.searchsorted(self._cumulated, points), self._size - 1)

    def uniform(self) -> NDArray[np.intp]:
        """Items, each as likely."""
        return self.random.integers(0, self._items, self._config.uniform)


def _loss(
    towers: TowerNetwork,
    examples: TowerExamples,
    chosen: NDArray[np.intp],
    draws: _Draws,
    config: TowerConfig,
) -> Tensor:
    history = examples.history[chosen]
    kept = draws.random.random(history.shape) >= config.dropout
    kept[:, 0] = True
    history = np.where((history >= 0) & kept, history, len(towers.bias)).astype(np.int64)
    weight = torch.from_numpy(examples.weight[chosen])
    users = towers.users(
        torch.from_numpy(history), weight, torch.from_numpy(examples.age[chosen].astype(np.int64))
    )
    target = torch.from_numpy(examples.target[chosen].astype(np.int64))
    items = torch.cat([target, torch.from_numpy(draws.uniform())])
    logits = users @ towers.items(items).T / config.temperature + towers.bias[items]
    logits = logits - draws.log_expected[items]
    accidental = items[None, :] == target[:, None]
    accidental[torch.arange(len(target)), torch.arange(len(target))] = False
    return nn.functional.cross_entropy(
        logits.masked_fill(accidental, -1e9), torch.arange(len(target))
    )

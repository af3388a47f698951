"""Two-tower models: unit vectors of users and items; the logit is their cosine over a temperature.

`HistoryTowers` is served: a user is the recent history, each item weighted by its action and by a
learned weight of its age; an item is its id and its text. The user's vector is one weighted sum,
which serving computes in NumPy (`afterclick.model.TowerArrays`). `MatrixTowers` is for published
splits without times: a user is the mean of their items, and optionally an embedding of their own.

Both learn by sampled softmax: logits less the log of how often an item is drawn, accidental hits
masked. `HistoryTowers` draw the batch's own targets and uniform items (Yi et al., RecSys 2019); the
user's other items are masked too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from afterclick.arrays import BoolArray, FloatArray, IndexArray, Int64Array, IntArray
from afterclick.model import AGES_DAYS, TOWER_HISTORY, UNKNOWN_BIAS, TowerArrays
from afterclick.trends import DAY_MS
from training.config import TowerConfig
from training.interactions import Interactions, runs, tie_hash
from training.models.neural import (
    Batches,
    BestNetwork,
    Negatives,
    Optimiser,
    Table,
    softmax_loss,
)
from training.models.stopping import EarlyStopping, TimeBudget

_RANKS = np.arange(TOWER_HISTORY)


class TowerNetwork(nn.Module):
    """The item tower, and the logits of user vectors for items."""

    def __init__(self, item: nn.Module, n_items: int, temperature: float) -> None:
        super().__init__()
        self.item, self.bias = item, nn.Parameter(torch.zeros(n_items))
        self.temperature = temperature

    def items(self, item: Tensor) -> Tensor:
        """(n, dim) unit vectors."""
        return nn.functional.normalize(self.item(item), dim=1)

    def logits(self, users: Tensor, item: Tensor) -> Tensor:
        """(b, n) of every user vector (b, dim) for every item (n,)."""
        return users @ self.items(item).T / self.temperature + self.bias[item]

    def pair_logits(self, users: Tensor, item: Tensor) -> Tensor:
        """(b,) of each user vector (b, dim) for the item (b,) in the same row."""
        return (users * self.items(item)).sum(1) / self.temperature + self.bias[item]


class HistoryTowers(TowerNetwork):
    """Towers over live histories; `texts` (n, d) are content vectors, zeros without a text."""

    def __init__(self, n_items: int, config: TowerConfig, texts: Tensor | None) -> None:
        history = nn.Embedding(n_items + 1, config.dim, padding_idx=n_items)
        item = nn.Embedding(n_items, config.dim)
        super().__init__(item, n_items, config.temperature)
        self.history = history
        self.ages = nn.Parameter(torch.zeros(len(AGES_DAYS) + 1))
        self.texts = texts
        self.text = nn.Linear(texts.shape[1], config.dim, bias=False) if texts is not None else None
        nn.init.normal_(item.weight, std=config.dim**-0.5)
        with torch.no_grad():
            history.weight[:-1] = item.weight

    def users(self, history: Tensor, weight: Tensor, age: Tensor) -> Tensor:
        """(b, dim) unit vectors from items (b, h), action weights (b, h) and age buckets (b, h)."""
        decayed = weight * torch.exp(self.ages)[age]
        return nn.functional.normalize((self.history(history) * decayed[:, :, None]).sum(1), dim=1)

    def items(self, item: Tensor) -> Tensor:
        """(n, dim) unit vectors of id and text."""
        vector = self.item(item)
        if self.text is not None and self.texts is not None:
            vector = vector + self.text(self.texts[item])
        return nn.functional.normalize(vector, dim=1)

    @torch.no_grad()
    def export(self) -> TowerArrays:
        """The arrays that serving computes with."""
        items = self.items(torch.arange(len(self.bias))) / self.temperature
        return TowerArrays(
            history=self.history.weight[:-1].numpy().copy(),
            targets=torch.cat([items, self.bias[:, None]], 1).numpy(),
            ages=torch.exp(self.ages).numpy(),
        )


@dataclass(frozen=True)
class TowerBatch:
    """Targets and the histories that predict them."""

    history: IntArray
    """(b, TOWER_HISTORY) item indices, newest first; -1 pads"""
    weight: FloatArray
    """(b, TOWER_HISTORY) weight of the action"""
    age: NDArray[np.int8]
    """(b, TOWER_HISTORY) number of the age's bucket"""
    target: IntArray
    """(b,) item indices"""


@dataclass(frozen=True)
class TowerExamples:
    """The interactions whose user has others before them or at the same time.

    Interactions of one user at the same time are a set without an order. The history of a target is
    drawn anew in every batch: a random part of the rest of its set, at age 0, then what came before
    the set. The part has any size with equal probability, as if the set had come in random order.
    """

    item: IntArray
    """(m,) item index of each interaction, by user, time and hash"""
    weight: FloatArray
    """(m,)"""
    time_ms: Int64Array
    """(m,)"""
    of_user: tuple[IndexArray, IndexArray]
    """(m,) start and end of the rows of the same user"""
    of_set: tuple[IndexArray, IndexArray]
    """(m,) start and end of the rows of the same user and time"""
    targets: IndexArray
    """(n,) rows that are targets"""

    @classmethod
    def of(cls, rows: Interactions) -> TowerExamples:
        """Every interaction that can have a history."""
        tie = tie_hash(rows.user_ids, rows.user, rows.item_ids, rows.item)
        order = np.lexsort((tie, rows.time_ms, rows.user))
        user, time_ms = rows.user[order], rows.time_ms[order]
        of_user, of_set = runs(user), runs(user, time_ms)
        targets = np.flatnonzero((of_set[0] > of_user[0]) | (of_set[1] - of_set[0] > 1))
        return cls(rows.item[order], rows.weight[order], time_ms, of_user, of_set, targets)

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, chosen: IndexArray, random: np.random.Generator) -> TowerBatch:
        """The examples `chosen` (b,) with histories drawn for them."""
        target = self.targets[chosen]
        first, start = self.of_user[0][target], self.of_set[0][target]
        others = self.of_set[1][target] - start - 1
        together = random.integers((start == first).astype(np.intp), others + 1)[:, None]
        turn = random.integers(0, np.maximum(others, 1))[:, None] + _RANKS
        in_set = (target - start + 1)[:, None] + turn % np.maximum(others, 1)[:, None]
        in_set = start[:, None] + in_set % (others + 1)[:, None]
        row = np.where(together > _RANKS, in_set, start[:, None] - 1 - (_RANKS - together))
        there = row >= first[:, None]
        row = np.where(there, row, 0)
        days = (self.time_ms[target][:, None] - self.time_ms[row]) / DAY_MS
        return TowerBatch(
            np.where(there, self.item[row], -1).astype(np.int32),
            np.where(there, self.weight[row], 0.0).astype(np.float32),
            np.searchsorted(AGES_DAYS, days, side="right").astype(np.int8),
            self.item[target].astype(np.int32),
        )

    def owned(self, chosen: IndexArray, items: IndexArray) -> BoolArray:
        """(b, len(items)) whether the user of each example has an interaction with each item."""
        start, end = (bound[self.targets[chosen]] for bound in self.of_user)
        example = np.repeat(np.arange(len(chosen)), end - start)
        before = np.cumsum(end - start) - (end - start)
        item = self.item[np.arange(len(example)) + (start - before)[example]]
        distinct, column = np.unique(items, return_inverse=True)
        place = np.minimum(np.searchsorted(distinct, item), len(distinct) - 1)
        found = distinct[place] == item
        owned = np.zeros((len(chosen), len(distinct)), bool)
        owned[example[found], place[found]] = True
        return np.asarray(owned[:, column])


def fit(
    rows: Interactions, config: TowerConfig, texts: FloatArray | None = None
) -> TowerArrays | None:
    """The served towers, learned from `rows` (in order of time).

    `texts` (n_items, d) are content vectors. None if no user has two such items.
    """
    known = rows.item_counts() >= config.min_interactions
    frequent = rows.choose(known)
    examples = TowerExamples.of(frequent)
    if not len(examples):
        return None
    towers = train(
        examples, len(frequent.item_ids), config, None if texts is None else texts[known]
    )
    learned = towers.export()
    history = np.zeros((len(known), config.dim), np.float32)
    targets = np.zeros((len(known), config.dim + 1), np.float32)
    targets[:, -1] = UNKNOWN_BIAS
    history[known], targets[known] = learned.history, learned.targets
    return TowerArrays(history, targets, learned.ages)


def train(
    examples: TowerExamples, n_items: int, config: TowerConfig, texts: FloatArray | None = None
) -> HistoryTowers:
    """The network learned from examples, by AdamW with one learning-rate cycle."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    towers = HistoryTowers(n_items, config, None if texts is None else torch.from_numpy(texts))
    draws = _Draws(examples, n_items, config)
    per_epoch = max(1, len(examples) // config.batch)
    steps = config.epochs * per_epoch
    optimiser = torch.optim.AdamW(_parameters(towers, config, per_epoch), lr=config.rate)
    warm_up = max(0.1, 2 / (steps + 1))  # at least one step: torch divides by less
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.rate, total_steps=steps + 1, pct_start=warm_up
    )
    for rows in draws.batches(steps):
        optimiser.zero_grad()
        _loss(towers, examples, rows, draws).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return towers


def _parameters(
    towers: HistoryTowers, config: TowerConfig, steps_per_epoch: int
) -> list[dict[str, Any]]:
    """AdamW's groups: the tables decay, biases and weights of ages do not.

    AdamW multiplies by 1 - rate · weight_decay in every step.
    """
    lost = 1.0 - (1.0 - config.decay) ** (1.0 / steps_per_epoch)
    tables = [p for p in towers.parameters() if p.ndim > 1]
    others = [p for p in towers.parameters() if p.ndim == 1]
    return [
        {"params": tables, "weight_decay": lost / config.rate},
        {"params": others, "weight_decay": 0.0},
    ]


class _Draws:
    """Random batches, newer examples more often, and uniform negatives."""

    def __init__(self, examples: TowerExamples, n_items: int, config: TowerConfig) -> None:
        self.random = np.random.default_rng(config.seed)
        time_ms = examples.time_ms[examples.targets]
        age_ms = time_ms - time_ms.max()
        share = np.exp2(age_ms / (config.half_life_days * DAY_MS))
        share /= share.sum()
        self._cumulated, self._size = np.cumsum(share), len(examples)
        self._items, self._config = n_items, config
        of_item = np.bincount(examples.item[examples.targets], share, minlength=n_items)
        expected = config.batch * of_item + config.uniform / n_items
        self.log_expected = torch.from_numpy(np.log(np.maximum(expected, 1e-12)).astype(np.float32))

    def batches(self, count: int) -> Iterator[NDArray[np.intp]]:
        """Numbers of examples."""
        for _ in range(count):
            points = self.random.random(self._config.batch)
            yield np.minimum(np.searchsorted(self._cumulated, points), self._size - 1)

    def kept(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Which history items dropout keeps: always the newest one, in column 0."""
        kept = self.random.random(shape) >= self._config.dropout
        kept[:, 0] = True
        return kept

    def uniform(self) -> NDArray[np.intp]:
        """Items with equal probability."""
        return self.random.integers(0, self._items, self._config.uniform)


def _loss(
    towers: HistoryTowers, examples: TowerExamples, chosen: NDArray[np.intp], draws: _Draws
) -> Tensor:
    batch = examples.batch(chosen, draws.random)
    kept = (batch.history >= 0) & draws.kept(batch.history.shape)
    users = towers.users(
        torch.from_numpy(np.where(kept, batch.history, len(towers.bias)).astype(np.int64)),
        torch.from_numpy(batch.weight),
        torch.from_numpy(batch.age.astype(np.int64)),
    )
    items = np.concatenate([batch.target, draws.uniform()])
    column = torch.from_numpy(items)
    logits = towers.logits(users, column) - draws.log_expected[column]
    own = examples.owned(chosen, items)  # a user's other items are no negatives
    diagonal = np.arange(len(chosen))
    own[diagonal, diagonal] = False
    logits = logits.masked_fill(torch.from_numpy(own), -1e9)
    return nn.functional.cross_entropy(logits, torch.from_numpy(diagonal))


class MatrixTowers(TowerNetwork):
    """Towers over sets of items; one table embeds items on both sides."""

    def __init__(self, users: int, items: int, config: TwoTower) -> None:
        item, user = (Table(rows, config.dim, config.dim**-0.5) for rows in (items, users))
        super().__init__(item, items, config.temperature)
        self.past, self.user, self.user_weight = item, user, config.own

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
    """Time budget: no epoch starts that would end later."""

    def fit(self, train: Any, seed: int, stopping: EarlyStopping | None = None) -> None:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        self._train = train.tocsr()
        self._towers = MatrixTowers(train.shape[0], train.shape[1], self)
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

"""Small models and states with obvious answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from afterclick.arrays import FloatArray, IntArray
from afterclick.features import TrendView, features
from afterclick.model import ItemContent, Model
from afterclick.ncf import UNKNOWN, NcfArrays
from afterclick.sequence_encoder import AGES_DAYS
from afterclick.trends import HALF_LIVES_MS
from afterclick.user_vectors import UserState, UserVectors

NOW_MS = 1_800_000_000_000.0
DAY = 86_400_000.0


def a_model(n: int = 6, **changes: Any) -> Model:
    """Items 0…n−1; the next one is the neighbour, the previous one the same-day neighbour."""
    ring = np.arange(n, dtype=np.int32)
    facts: dict[str, Any] = {
        "version": "m1",
        "item_ids": np.array([f"i{i}" for i in range(n)]),
        "popularity": np.arange(n, 0, -1).astype(np.float32),
        "first_seen_ms": np.full(n, NOW_MS - 10 * DAY),
        "neighbour_items": np.stack([(ring + 1) % n, np.full(n, -1, np.int32)], axis=1),
        "neighbour_scores": np.stack([np.full(n, 0.5), np.zeros(n)], axis=1).astype(np.float32),
        "co_purchase_items": ((ring - 1) % n)[:, None].astype(np.int32),
        "co_purchase_scores": np.full((n, 1), 0.25, np.float32),
        "factors": np.eye(n, 4, dtype=np.float32) + 0.1,
        "content": np.eye(n, 3, dtype=np.float32),
        "als_alpha": 10.0,
        "als_reg": 0.1,
    }
    return Model(**(facts | changes))


def some_ncf(n: int, dim: int = 4, hidden: int = 6, seed: int = 5) -> NcfArrays:
    """Random NCF; item 2 is unknown to it."""
    random = np.random.default_rng(seed)

    def array(*shape: int) -> FloatArray:
        return random.normal(size=shape).astype(np.float32)

    targets = array(n, dim + 1)
    targets[2:3, -1] = UNKNOWN
    ages = np.linspace(1, 0.3, len(AGES_DAYS) + 1).astype(np.float32)
    return NcfArrays(
        array(n, dim + hidden), targets, array(n, hidden), array(hidden // 2, hidden + 2), ages
    )


def late(model: Model, *like: int | None) -> ItemContent:
    """Content with a new item per entry of `like`: the content of that item, or none."""
    assert model.item_content is not None
    rows = [np.zeros(3, np.float32) if i is None else model.item_content.vectors[i] for i in like]
    return model.item_content.with_new(np.stack(rows))


def a_state(items: list[int], seen: list[int] | None = None, age_days: float = 1.0) -> UserState:
    """A user with these items, newest first, each `age_days` older than the one before."""
    count = len(items)
    return UserState(
        np.array(items, np.int32),
        np.ones(count, np.float32),
        NOW_MS - age_days * DAY * np.arange(1, count + 1, dtype=np.float64),
        np.array(items if seen is None else seen, np.int32),
        NOW_MS,
    )


def features_of(
    model: Model,
    state: UserState,
    trends: TrendView,
    candidates: IntArray,
    content: ItemContent | None = None,
) -> FloatArray:
    """The features for a user of whom only the state is given."""
    return features(model, UserVectors.of(model, state), trends, candidates, content)


def a_view(n: int = 6, hot: int | None = None, top: int = 3) -> TrendView:
    """Trends in which `hot` is far ahead and the others are equal."""
    values = np.ones((n, len(HALF_LIVES_MS)))
    if hot is not None:
        values[hot] = 100.0
    return TrendView.of(values, np.full(n, NOW_MS - 10 * DAY), top)

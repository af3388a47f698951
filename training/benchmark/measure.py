"""Full ranking: every item that the user does not have is a candidate; or ranking among given negatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation import metrics
from training.evaluation.ranking import top_n

Scores = Callable[[NDArray[np.intp]], NDArray[np.floating]]
"""user indices (b,) → (b, n_items)"""
DEPTH = 20


def lists(
    scores: Scores, seen: Any, users: NDArray[np.intp], seed: int, batch: int, among: Any = None
) -> NDArray[np.int32]:
    """(len(users), DEPTH) int32: the best items that are not in `seen`, ties broken at random.

    Of those in `among` (n_users, n_items) alone, where it is given.
    """
    random = np.random.default_rng(seed)
    items = np.arange(seen.shape[1], dtype=np.int32)
    found = []
    for start in range(0, len(users), batch):
        some = users[start : start + batch]
        values = np.array(scores(some), np.float32)
        row, column = seen[some].nonzero()
        values[row, column] = -np.inf
        if among is not None:
            values[among[some].toarray() == 0] = -np.inf
        found.append(top_n(values, items, random, DEPTH))
    return np.concatenate(found)


def measure(
    scores: Scores,
    seen: Any,
    target: Any,
    seed: int = 42,
    most: int | None = None,
    negatives: Any = None,
) -> dict[str, float]:
    """Recall, NDCG, HR and F1 at 10 and 20, the mean over users with a target (or `most` of them).

    With `negatives` (n_users, n_items) a user's targets are ranked among those alone.
    """
    users = np.flatnonzero(np.diff(target.indptr))
    if most is not None and len(users) > most:
        users = np.sort(np.random.default_rng(seed).choice(users, most, replace=False))
    batch = max(16, min(1024, 20_000_000 // max(target.shape[1], 1)))
    shown = lists(
        scores, seen, users, seed, batch, None if negatives is None else negatives + target
    )
    relevant = np.diff(target.indptr)[users].astype(np.int32)
    hits = _hits(shown, target, users)
    out: dict[str, float] = {}
    for k in (10, 20):
        for name, metric in (
            ("recall", metrics.recall),
            ("ndcg", metrics.ndcg),
            ("hr", metrics.hit_rate),
            ("f1", metrics.f1),
        ):
            out[f"{name}@{k}"] = float(metric(hits, relevant, k).mean())
    return out


def _hits(shown: NDArray[np.int32], target: Any, users: NDArray[np.intp]) -> NDArray[np.bool_]:
    """(q, DEPTH) bool, by looking each (user, item) up among the sorted pairs of the targets."""
    items = target.shape[1]
    rows = target[users].tocoo()
    wanted = np.sort(rows.row.astype(np.int64) * items + rows.col)
    asked = np.arange(len(users), dtype=np.int64)[:, None] * items + shown
    at = np.minimum(np.searchsorted(wanted, asked), max(len(wanted) - 1, 0))
    return np.asarray((wanted[at] == asked) & (shown >= 0))

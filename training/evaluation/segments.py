"""Hit rate by length of the history and by age of the target item."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.trends import DAY_MS
from training.evaluation import list_metrics
from training.evaluation.measure import Answers
from training.models.popularity import first_seen
from training.protocols import EvaluationSplit

HISTORY = ((0, 0), (1, 1), (2, 4), (5, 9), (10, 10**9))
AGE_DAYS = ((0, 90), (90, 365), (365, 730), (730, 10**9))
_MIN_QUERIES = 20
"""Segments with fewer queries are left out."""


def segments(
    split: EvaluationSplit, answers: Answers, seed: int = 42
) -> dict[str, dict[str, dict[str, Any]]]:
    """Kind of segment → its name → `users`, and scorer → HR@10 with its interval."""
    length = split.train.user_counts()[answers.queries.user]
    seen = first_seen(split.train)[answers.queries.target]
    age = (answers.queries.now_ms - seen) / DAY_MS
    return {
        "history": _by(answers, length, HISTORY, "items", seed),
        "item_age": _by(answers, np.floor(age).astype(np.int64), AGE_DAYS, "days", seed),
    }


def _by(
    answers: Answers,
    value: NDArray[np.int64],
    bounds: tuple[tuple[int, int], ...],
    unit: str,
    seed: int,
) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    for low, high in bounds:
        inside = (value >= low) & ((value <= high) if unit == "items" else (value < high))
        if inside.sum() < _MIN_QUERIES:
            continue
        out[_name(low, high, unit)] = {"users": int(inside.sum())} | {
            name: _hit_rate(lists[inside], answers.queries.target[inside], seed)
            for name, lists in answers.lists.items()
        }
    return out


def _hit_rate(lists: NDArray[np.int32], target: NDArray[np.int32], seed: int) -> dict[str, Any]:
    hits = list_metrics.hit_rate(
        list_metrics.hits_of(lists, target), np.ones(len(target), np.int32), 10
    )
    return {"hr@10": float(hits.mean()), "hr@10_interval": list(list_metrics.interval(hits, seed))}


def _name(low: int, high: int, unit: str) -> str:
    if high >= 10**9:
        return f"{low} {unit} or more"
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"

"""Who gains: hit rate by length of the history and by age of the target."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.trends import DAY_MS
from training.baselines import first_seen
from training.evaluation import metrics
from training.evaluation.compare import Answers
from training.evaluation.protocols import Split

HISTORY = ((0, 0), (1, 1), (2, 4), (5, 9), (10, 10**9))
AGE_DAYS = ((0, 90), (90, 365), (365, 730), (730, 10**9))
_FEWEST = 20
"""Questions below which a segment is left out."""


def segments(
    split: Split, answers: Answers, seed: int = 42
) -> dict[str, dict[str, dict[str, Any]]]:
    """Kind of segment → its name → `users`, and contestant → HR@10 with its interval."""
    length = split.train.user_counts()[answers.asked.user]
    seen = first_seen(split.train)[answers.asked.target]
    age = (answers.asked.now_ms - seen) / DAY_MS
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
        if inside.sum() < _FEWEST:
            continue
        out[_name(low, high, unit)] = {"users": int(inside.sum())} | {
            name: _hit_rate(lists[inside], answers.asked.target[inside], seed)
            for name, lists in answers.lists.items()
        }
    return out


def _hit_rate(lists: NDArray[np.int32], target: NDArray[np.int32], seed: int) -> dict[str, Any]:
    hits = metrics.hit_rate(metrics.hits_of(lists, target), np.ones(len(target), np.int32), 10)
    return {"hr@10": float(hits.mean()), "hr@10_interval": list(metrics.interval(hits, seed))}


def _name(low: int, high: int, unit: str) -> str:
    if high >= 10**9:
        return f"{low} {unit} or more"
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"

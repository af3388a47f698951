"""What a challenger has to show before it replaces the champion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afterclick.errors import AfterclickError
from afterclick.model import WORD_ARRAYS, Model, fit_together

METRIC = "ndcg@10"
FEWEST = 50
"""Questions that a comparison needs to mean something."""
WORST_DROP = 0.1
"""The most of the champion's mean that noise may explain."""
PerQueryMetrics = dict[str, dict[str, NDArray[np.float64]]]


class Refused(AfterclickError):
    """The challenger was not published; the champion stays."""

    exit_code = 6


@dataclass(frozen=True)
class GateDecision:
    """The outcome of a comparison, with its reason in one line."""

    passed: bool
    reason: str
    difference: float | None = None
    """Mean of the challenger less the champion, in METRIC over all questions."""
    interval: tuple[float, float] | None = None
    """90 % paired bootstrap interval of the difference."""


def sanity_check(model: Model, before: int | None = None) -> GateDecision:
    """Whether a model could be served at all: finite, of one shape, with about the champion's items.

    `before` is how many those are, where it is known; half of them suffices.
    """
    for name, array in model.arrays().items():
        if len(array) != len(model) and name not in WORD_ARRAYS:
            return GateDecision(False, f"{name} has {len(array)} rows for {len(model)} items")
        if array.dtype.kind == "f" and name != "first_seen_ms" and not np.isfinite(array).all():
            return GateDecision(False, f"{name} holds NaN or infinity")
    if model.words is not None and not fit_together(
        model.words.words, model.words.vectors, model.content
    ):
        return GateDecision(False, "words, their vectors and content do not fit together")
    if not len(model) or len(model.index) != len(model):
        return GateDecision(
            False, "no items" if not len(model) else "an item stands twice in item_ids"
        )
    if model.factors is not None and not model.factors.any():
        return GateDecision(False, "every ALS factor is zero")
    for name, near in model.arrays().items():
        if (
            name.endswith("_items")
            and near.size
            and not (-1 <= near.min() <= near.max() < len(model))
        ):
            return GateDecision(False, f"{name} points outside the items")
    if before is not None and 2 * len(model) < before:
        return GateDecision(False, f"only {len(model):,} items, the champion has {before:,}")
    return GateDecision(True, "sound")


def compare(
    challenger: PerQueryMetrics, other: PerQueryMetrics, name: str = "champion", seed: int = 42
) -> GateDecision:
    """Whether the challenger is not worse than `other` on the same questions, by a paired bootstrap.

    Refused when it is worse beyond doubt (the whole interval below zero) or by more than WORST_DROP. Too few
    questions decide nothing, and pass.
    """
    mine, theirs = _values(challenger), _values(other)
    if not np.isfinite(mine).all():
        return GateDecision(False, f"its {METRIC} is not a number")
    if len(mine) < FEWEST:
        return GateDecision(True, f"not compared with the {name}: only {len(mine)} questions")
    difference = mine - theirs
    low, high = _bootstrap(difference, seed)
    mean, base = float(difference.mean()), float(theirs.mean())
    facts = f"{METRIC} {mine.mean():.4f}, {name} {base:.4f}, difference {mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    worse = high < 0 or mean < -WORST_DROP * base
    return GateDecision(
        not worse,
        f"{'worse than' if worse else 'not worse than'} the {name}: {facts}",
        mean,
        (low, high),
    )


def decide(
    challenger: PerQueryMetrics | None, against: dict[str, PerQueryMetrics | None]
) -> GateDecision:
    """The verdict over every comparison: the first refusal, else the last comparison made.

    A challenger without a ranker cannot be judged: it passes only where the champion could not be either.
    """
    others = {name: judged for name, judged in against.items() if judged is not None}
    if challenger is None:
        if "champion" in others:
            return GateDecision(False, "it has no ranker and the champion has one")
        return GateDecision(
            True, "sound; not compared, for there is too little past to learn a ranker from"
        )
    verdicts = [compare(challenger, judged, name) for name, judged in others.items()]
    refused = [v for v in verdicts if not v.passed]
    return (refused or verdicts[::-1] or [GateDecision(True, "sound; nothing to compare with")])[0]


def _values(judged: PerQueryMetrics) -> NDArray[np.float64]:
    return np.concatenate(
        [judged[protocol][METRIC] for protocol in sorted(judged)] or [np.empty(0)]
    )


def _bootstrap(
    difference: NDArray[np.float64], seed: int, rounds: int = 2000
) -> tuple[float, float]:
    random = np.random.default_rng(seed)
    distinct, count = np.unique(difference, return_counts=True)
    draws = random.multinomial(len(difference), count / len(difference), size=rounds)
    low, high = np.quantile(draws @ distinct / len(difference), [0.05, 0.95])
    return float(low), float(high)

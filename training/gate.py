"""Decide whether a challenger may replace the champion: pure functions over arrays and metrics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afterclick.errors import AfterclickError
from afterclick.model import WORD_ARRAYS, Model, fit_together

METRIC = "ndcg@10"
MIN_QUERIES = 50
"""With fewer queries a comparison decides nothing, and passes."""
MAX_RELATIVE_DROP = 0.1
"""Largest drop of the mean, relative to the champion's, that is accepted as noise."""
PerQueryMetrics = dict[str, dict[str, NDArray[np.float64]]]
"""protocol → metric → (n_queries,) values"""


class Refused(AfterclickError):
    """The gate refused the challenger; the champion stays."""

    exit_code = 6


@dataclass(frozen=True)
class GateDecision:
    """A decision with its reason in one line."""

    passed: bool
    reason: str
    difference: float | None = None
    """Mean over all queries of challenger minus champion, in METRIC."""
    interval: tuple[float, float] | None = None
    """90 % paired bootstrap interval of the difference."""


def sanity_check(model: Model, champion_items: int | None = None) -> GateDecision:
    """Check that a model can be served: finite values, consistent shapes, valid item indices.

    `champion_items`: the model needs at least half as many items, if the number is known.
    """
    problem = (
        _wrong_array(model)
        or _wrong_items(model)
        or _wrong_neighbours(model)
        or _too_few_items(model, champion_items)
    )
    return GateDecision(problem is None, problem or "sound")


def _wrong_array(model: Model) -> str | None:
    for name, array in model.arrays().items():
        if len(array) != len(model) and name not in WORD_ARRAYS:
            return f"{name} has {len(array)} rows for {len(model)} items"
        if array.dtype.kind == "f" and name != "first_seen_ms" and not np.isfinite(array).all():
            return f"{name} holds NaN or infinity"
    words = model.words
    if words is not None and not fit_together(words.words, words.vectors, model.content):
        return "the shapes of words, word vectors and content do not match"
    return None


def _wrong_items(model: Model) -> str | None:
    if not len(model):
        return "the model has no items"
    if len(model.index) != len(model):
        return "item_ids holds duplicates"
    if model.factors is not None and not model.factors.any():
        return "every ALS factor is zero"
    return None


def _wrong_neighbours(model: Model) -> str | None:
    for name, items in model.arrays().items():
        if not name.endswith("_items") or not items.size:
            continue
        if items.min() < -1 or items.max() >= len(model):
            return f"{name} holds item indices out of range"
    return None


def _too_few_items(model: Model, champion_items: int | None) -> str | None:
    if champion_items is None or 2 * len(model) >= champion_items:
        return None
    return f"only {len(model):,} items, the champion has {champion_items:,}"


def compare(
    challenger: PerQueryMetrics, other: PerQueryMetrics, name: str = "champion", seed: int = 42
) -> GateDecision:
    """Compare two models on the same queries by a paired bootstrap.

    Refused if the whole interval of the difference is below zero, or if the mean drops by more
    than MAX_RELATIVE_DROP. Passes with fewer than MIN_QUERIES queries.
    """
    values, other_values = _values(challenger), _values(other)
    if not np.isfinite(values).all():
        return GateDecision(False, f"its {METRIC} is not a number")
    if len(values) < MIN_QUERIES:
        return GateDecision(True, f"not compared with the {name}: only {len(values)} questions")
    difference = values - other_values
    low, high = _bootstrap_interval(difference, seed)
    mean, other_mean = float(difference.mean()), float(other_values.mean())
    worse = high < 0 or mean < -MAX_RELATIVE_DROP * other_mean
    figures = (
        f"{METRIC} {values.mean():.4f}, {name} {other_mean:.4f}, "
        f"difference {mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    )
    outcome = "worse than" if worse else "not worse than"
    return GateDecision(not worse, f"{outcome} the {name}: {figures}", mean, (low, high))


def decide(
    challenger: PerQueryMetrics | None, against: dict[str, PerQueryMetrics | None]
) -> GateDecision:
    """Combine the comparisons: the first refusal, else the last comparison.

    A challenger without a ranker (None) passes only if the champion has no ranker either.
    """
    others = {name: metrics for name, metrics in against.items() if metrics is not None}
    if challenger is None:
        if "champion" in others:
            return GateDecision(False, "it has no ranker, the champion has one")
        return GateDecision(True, "sound; not compared: too little history to train a ranker")
    decisions = [compare(challenger, metrics, name) for name, metrics in others.items()]
    refused = [decision for decision in decisions if not decision.passed]
    nothing = GateDecision(True, "sound; nothing to compare with")
    return (refused or decisions[::-1] or [nothing])[0]


def _values(metrics: PerQueryMetrics) -> NDArray[np.float64]:
    """METRIC of every query, protocols in alphabetical order."""
    return np.concatenate(
        [metrics[protocol][METRIC] for protocol in sorted(metrics)] or [np.empty(0)]
    )


def _bootstrap_interval(
    difference: NDArray[np.float64], seed: int, rounds: int = 2000
) -> tuple[float, float]:
    """5 % and 95 % quantiles of the resampled mean, drawn over distinct values."""
    rng = np.random.default_rng(seed)
    distinct, count = np.unique(difference, return_counts=True)
    draws = rng.multinomial(len(difference), count / len(difference), size=rounds)
    low, high = np.quantile(draws @ distinct / len(difference), [0.05, 0.95])
    return float(low), float(high)

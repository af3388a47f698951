"""Decide whether a challenger may replace the champion: pure functions over arrays and metrics.

Non-inferiority: a challenger passes if the one-sided 95 % lower bound of its relative difference to
each other model is above −margin. With too few questions for a decision it is `undecided`.
docs/decisions/0024-release-gate.md has the rule's operating curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import BoolArray, Float64Array, IndexArray
from afterclick.errors import AfterclickError
from afterclick.model import WORD_ARRAYS, Model, fit_together

METRIC = "ndcg@50"
"""Deeper than a page, because most differences of two models lie below it: on Electronics NDCG@10
needs 27,700 questions for what NDCG@50 shows with 11,500."""
MIN_USERS = 50
"""Fewer users decide nothing: the interval assumes that a mean is normally distributed."""
CONFIDENCE, POWER = 0.95, 0.80
_Z_CONFIDENCE, _Z_POWER = (NormalDist().inv_cdf(level) for level in (CONFIDENCE, POWER))
Verdict = Literal["passed", "refused", "undecided"]
VERDICTS: tuple[Verdict, ...] = ("passed", "refused", "undecided")
_OUTCOMES: dict[Verdict, str] = {
    "passed": "not inferior to",
    "refused": "inferior to",
    "undecided": "undecided against",
}


class Refused(AfterclickError):
    """The challenger is not published; the champion stays."""

    exit_code = 6


@dataclass(frozen=True)
class SanityCheck:
    """Whether a model can be served, with the reason in one line."""

    passed: bool
    reason: str


@dataclass(frozen=True)
class Questions:
    """Whose questions the values of a comparison answer, and how much each counts."""

    user: NDArray[np.integer]
    """(q,) user_index; a user may have several questions"""
    weights: Float64Array
    """(q,) ≥ 0, e.g. clipped inverse propensities"""
    organic: BoolArray
    """(q,) no target came from a list that was shown"""

    @classmethod
    def unweighted(cls, user: NDArray[np.integer]) -> Questions:
        """Every question counts 1 and is organic."""
        return cls(user, np.ones(len(user)), np.ones(len(user), bool))

    def __len__(self) -> int:
        return len(self.user)

    @property
    def own_share(self) -> float | None:
        """Share of the questions with a target from the champion's own lists; None without any."""
        return 1.0 - float(self.organic.mean()) if len(self) else None

    def mean(self, values: Float64Array) -> float:
        """Weighted mean of `values` (q,); 0 without a question of positive weight."""
        total = float(self.weights.sum())
        return float(self.weights @ values) / total if total > 0 else 0.0

    def by_user(self, values: Float64Array) -> Float64Array:
        """(u,) weighted sums of the users' values (q,)."""
        return np.asarray(np.bincount(self._row_of_user, self.weights * values), np.float64)

    @property
    def n_users(self) -> int:
        """Users with a question of positive weight."""
        return int(np.count_nonzero(np.bincount(self._row_of_user, self.weights)))

    @cached_property
    def _row_of_user(self) -> IndexArray:
        """(q,) the users, numbered from 0."""
        return np.asarray(np.unique(self.user, return_inverse=True)[1], np.intp)


@dataclass(frozen=True)
class Comparison:
    """A challenger against one other model on the same questions, in METRIC."""

    other: str
    verdict: Verdict
    reason: str
    margin: float
    """Accepted loss, relative to the other model's mean."""
    difference: float | None = None
    """Mean of the challenger divided by that of the other model, minus 1."""
    interval: tuple[float, float] | None = None
    """One-sided 95 % lower and upper bounds of the difference."""
    detectable_loss: float | None = None
    """Loss that puts the interval below 0 with a probability of 80 %."""

    @property
    def better(self) -> bool:
        """The challenger is shown to be better: the interval is above 0."""
        return self.interval is not None and self.interval[0] > 0

    @property
    def worse(self) -> bool:
        """The challenger is shown to be worse: the interval is below 0."""
        return self.interval is not None and self.interval[1] < 0


@dataclass(frozen=True)
class GateDecision:
    """The verdict over all comparisons, with its reasons in one line."""

    verdict: Verdict
    reason: str


def compare(
    challenger: Float64Array,
    other: Float64Array,
    questions: Questions,
    name: str = "champion",
    margin: float = 0.05,
) -> Comparison:
    """Compare two models by their METRIC on each question, (q,) each.

    `passed` if the lower bound of the relative difference is above −margin. Otherwise `refused` if
    the challenger is shown to be worse, or if the questions are enough for an equal challenger to
    pass with 80 % (detectable loss ≤ margin). Otherwise `undecided`.
    """
    if not np.isfinite(challenger).all():
        return Comparison(name, "refused", f"its {METRIC} is not a number", margin)
    mean, other_mean = questions.mean(challenger), questions.mean(other)
    if questions.n_users < MIN_USERS:
        few = (
            f"undecided against the {name}: questions of {questions.n_users} users, "
            f"{MIN_USERS} are needed"
        )
        return Comparison(name, "undecided", few, margin)
    if other_mean <= 0:
        nothing = f"not inferior to the {name}, which found no target"
        return Comparison(name, "passed", nothing, margin)
    difference = mean / other_mean - 1.0
    error = relative_error(challenger, other, questions)
    interval = (difference - _Z_CONFIDENCE * error, difference + _Z_CONFIDENCE * error)
    detectable = detectable_loss(error)
    verdict = _verdict(interval, detectable, margin)
    reason = (
        f"{_OUTCOMES[verdict]} the {name}: {METRIC} {mean:.4f}, {name} {other_mean:.4f}, "
        f"difference {difference:+.1%} [{interval[0]:+.1%}, {interval[1]:+.1%}], margin "
        f"{margin:.0%}; would detect a loss of {detectable:.1%} with {POWER:.0%} probability"
    )
    return Comparison(name, verdict, reason, margin, difference, interval, detectable)


def _verdict(interval: tuple[float, float], detectable: float, margin: float) -> Verdict:
    if interval[0] > -margin:
        return "passed"
    return "refused" if interval[1] < 0 or detectable <= margin else "undecided"


def relative_error(challenger: Float64Array, other: Float64Array, questions: Questions) -> float:
    """Standard error of the ratio of two weighted means; users are the sampling units.

    Delta method for clusters: Deng, Knoblich and Lu, Applying the Delta Method in Metric Analytics,
    KDD 2018, section 3.
    """
    sums, other_sums = questions.by_user(challenger), questions.by_user(other)
    residuals = sums - sums.sum() / other_sums.sum() * other_sums
    n = len(residuals)
    return float(np.sqrt(n / (n - 1) * np.square(residuals).sum()) / other_sums.sum())


def detectable_loss(error: float) -> float:
    """Relative loss that is shown (one-sided, 95 %) with a probability of 80 %.

    An equal challenger passes with at least 80 % exactly if this is at most the margin.
    """
    return (_Z_CONFIDENCE + _Z_POWER) * error


def not_compared(name: str, problem: str, margin: float) -> Comparison:
    """A model that exists but cannot be compared with: undecided."""
    return Comparison(name, "undecided", f"{name} not compared: {problem}", margin)


def decide(comparisons: Sequence[Comparison], problem: str | None = None) -> GateDecision:
    """The strictest verdict of the comparisons: refused, else undecided, else passed.

    `problem` with the model itself refuses it, whatever the comparisons say.
    """
    if problem is not None:
        return GateDecision("refused", problem)
    verdicts = [comparison.verdict for comparison in comparisons]
    verdict: Verdict = "passed" if comparisons else "undecided"
    if "refused" in verdicts or "undecided" in verdicts:
        verdict = "refused" if "refused" in verdicts else "undecided"
    reasons = [comparison.reason for comparison in comparisons if comparison.verdict == verdict]
    return GateDecision(verdict, "; ".join(reasons) or "nothing to compare with")


def sanity_check(model: Model, champion_items: int | None = None) -> SanityCheck:
    """Check that a model can be served: finite values, consistent shapes, valid item indices.

    `champion_items`: the model needs at least half as many items, if the number is known.
    """
    problem = (
        _wrong_array(model)
        or _wrong_items(model)
        or _wrong_neighbours(model)
        or _too_few_items(model, champion_items)
    )
    return SanityCheck(problem is None, problem or "sound")


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

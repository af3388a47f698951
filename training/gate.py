"""Decide whether a challenger may replace the champion: pure functions over arrays and metrics.

Non-inferiority: a challenger passes if the one-sided 95 % lower bound of its relative difference to
each other model is above −margin. With too few questions for a decision it is `undecided`.

The operating curve says how often challengers of a known quality are promoted. There a question is
the rank of its target in two models' lists. The distribution of ranks, and the correlation of
champion and challenger, are those of two trainings of one recipe on Electronics
(docs/decisions/0024-release-gate.md); a Gaussian copula joins the two. A challenger of level d
finds targets more or less often, so that its NDCG@10 is 1 + d times the champion's:

`uniform`  within every rank alike: each metric changes by d
`head`     most of all at the first ranks, as two trainings of a ranker differ: NDCG@50 changes by
           0.6 d
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from threadpoolctl import threadpool_limits

from afterclick.arrays import BoolArray, Float64Array, IndexArray
from afterclick.errors import AfterclickError
from afterclick.model import NOT_BY_ITEM, Model, fit_together

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
        if len(array) != len(model) and name not in NOT_BY_ITEM:
            return f"{name} has {len(array)} rows for {len(model)} items"
        if array.dtype.kind == "f" and name != "first_seen_ms" and not np.isfinite(array).all():
            return f"{name} holds NaN or infinity"
    words = model.words
    if words is not None and not fit_together(words.words, words.vectors, model.content):
        return "the shapes of words, word vectors and content do not match"
    if model.ncf is not None and not model.ncf.consistent:
        return "the shapes of the arrays of NCF do not match"
    if model.ncf is not None and not np.isfinite(model.ncf.ages).all():
        return "the weights of ages of NCF hold NaN or infinity"
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


Profile = Literal["uniform", "head"]
PROFILES: tuple[Profile, ...] = ("uniform", "head")
LEVELS = (-0.10, -0.05, 0.0, 0.05)
"""Relative differences of the simulated challengers in NDCG@10."""
SIZES = (2_000, 4_000, 8_000, 12_000, 16_000)
"""Numbers of questions; Electronics has 16,000."""
MIN_REFUSED, MIN_PROMOTED = 0.95, 0.80
"""The bars for challengers 10 % worse and for equal ones."""
CORRELATION = 0.88
"""Of the copula: gives the measured correlation of NDCG@50 per question, 0.75."""
QUESTIONS_PER_USER = 1.12
_RANKS = np.array([1, 2, 3, 5, 10, 20, 50])
_FOUND = np.array([0.015, 0.024, 0.032, 0.0425, 0.062, 0.089, 0.139])
"""Share of the questions whose target is within each of _RANKS."""
_HEAD = np.maximum(0.0, 1.58 - 0.36 * np.log(_RANKS))
"""Relative change of _FOUND for a change of NDCG@10 by 1."""


@dataclass(frozen=True)
class CurvePoint:
    """The verdicts on challengers of one level with one number of questions."""

    questions: int
    profile: Profile
    level: float
    passed: float
    refused: float
    undecided: float
    promoted: float
    """Passed or undecided: what the default settings publish."""
    detectable_loss: float
    """Mean over the challengers."""


def operating_curve(
    challengers: int = 200, sizes: Sequence[int] = SIZES, seed: int = 42
) -> dict[str, Any]:
    """Simulate `challengers` for each number of questions, profile and level; the curve as JSON.

    `refused_at_minus_10`, `promoted_at_0` and `detectable_loss` are the worst of the profiles at
    the largest size.
    """
    random = np.random.default_rng(seed)
    with threadpool_limits(1, "blas"):  # short products: more threads cost more than they save
        points = [
            _point(random, (questions, profile, level), challengers)
            for questions in sizes
            for profile in PROFILES
            for level in LEVELS
        ]
    most = [p for p in points if p.questions == max(sizes)]
    return {
        "challengers": challengers,
        "metric": METRIC,
        "questions": max(sizes),
        "refused_at_minus_10": min(p.refused for p in most if p.level == -0.10),
        "promoted_at_0": min(p.promoted for p in most if p.level == 0.0),
        "detectable_loss": max(p.detectable_loss for p in most if p.level == 0.0),
        "points": [asdict(p) for p in points],
    }


def _point(
    random: np.random.Generator, what: tuple[int, Profile, float], challengers: int
) -> CurvePoint:
    """The verdicts on challengers with (questions, profile, level)."""
    found = [simulate(random, *what) for _ in range(challengers)]
    passed, refused, undecided = (
        round(float(np.mean([c.verdict == verdict for c in found])), 4) for verdict in VERDICTS
    )
    losses = [c.detectable_loss for c in found if c.detectable_loss is not None]
    detectable, promoted = round(float(np.mean(losses)), 4), round(passed + undecided, 4)
    return CurvePoint(*what, passed, refused, undecided, promoted, detectable)


def simulate(
    random: np.random.Generator, questions: int, profile: Profile, level: float
) -> Comparison:
    """Compare one challenger of this level with the champion."""
    users = int(questions / QUESTIONS_PER_USER)
    user = np.concatenate([np.arange(users), random.choice(users, questions - users)])
    champion, own = random.standard_normal((2, questions))
    challenger = CORRELATION * champion + np.sqrt(1 - CORRELATION**2) * own
    values = ndcg(ndtr(challenger), profile, level), ndcg(ndtr(champion), profile, 0.0)
    return compare(*values, Questions.unweighted(user))


def ndcg(quantiles: Float64Array, profile: Profile, level: float, k: int = 50) -> Float64Array:
    """(q,) NDCG@k of questions at these quantiles (0 to 1) of a model's distribution of ranks.

    Ranks are log-linear between _RANKS.
    """
    found = _FOUND * (1.0 + level * (_HEAD if profile == "head" else 1.0))
    rank = np.ceil(np.exp(np.interp(quantiles, found, np.log(_RANKS))) - 1e-9)
    return np.where((quantiles <= found[-1]) & (rank <= k), 1.0 / np.log2(1.0 + rank), 0.0)

"""The operating curve of the release gate: how often challengers of a known quality are promoted.

A question is the rank of its target in two models' lists. The distribution of ranks, and the
correlation of champion and challenger, are those of two trainings of one recipe on Electronics
(docs/decisions/0024-release-gate.md); a Gaussian copula joins the two. A challenger of level d
finds targets more or less often, so that its NDCG@10 is 1 + d times the champion's:

`uniform`  within every rank alike: each metric changes by d
`head`     most of all at the first ranks, as two trainings of a ranker differ: NDCG@50 changes by
           0.6 d
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import ndtr
from threadpoolctl import threadpool_limits

from afterclick.arrays import Float64Array
from training import gate

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
        "metric": gate.METRIC,
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
        round(float(np.mean([c.verdict == verdict for c in found])), 4) for verdict in gate.VERDICTS
    )
    losses = [c.detectable_loss for c in found if c.detectable_loss is not None]
    detectable, promoted = round(float(np.mean(losses)), 4), round(passed + undecided, 4)
    return CurvePoint(*what, passed, refused, undecided, promoted, detectable)


def simulate(
    random: np.random.Generator, questions: int, profile: Profile, level: float
) -> gate.Comparison:
    """Compare one challenger of this level with the champion."""
    users = int(questions / QUESTIONS_PER_USER)
    user = np.concatenate([np.arange(users), random.choice(users, questions - users)])
    champion, own = random.standard_normal((2, questions))
    challenger = CORRELATION * champion + np.sqrt(1 - CORRELATION**2) * own
    values = ndcg(ndtr(challenger), profile, level), ndcg(ndtr(champion), profile, 0.0)
    return gate.compare(*values, gate.Questions.unweighted(user))


def ndcg(quantiles: Float64Array, profile: Profile, level: float, k: int = 50) -> Float64Array:
    """(q,) NDCG@k of questions at these quantiles (0 to 1) of a model's distribution of ranks.

    Ranks are log-linear between _RANKS.
    """
    found = _FOUND * (1.0 + level * (_HEAD if profile == "head" else 1.0))
    rank = np.ceil(np.exp(np.interp(quantiles, found, np.log(_RANKS))) - 1e-9)
    return np.where((quantiles <= found[-1]) & (rank <= k), 1.0 / np.log2(1.0 + rank), 0.0)

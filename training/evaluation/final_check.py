"""Check the model that will be served against its holdout model, which the gate compares.

Both are fitted by the same recipe, the final one on more events. So on the holdout, which it has
seen, its lists must not be worse, and no part of it may rank the targets lower: a part with
exchanged rows may cost little in a blend, but ranks targets like any other candidate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from afterclick.arrays import BoolArray, Float64Array, FloatArray, IntArray
from afterclick.features import FEATURE_NAMES
from afterclick.ranking import CandidateGenerator
from training.evaluation.holdout import Contestant, Holdout
from training.gate import METRIC, MIN_USERS, Comparison
from training.protocols import sample
from training.query_replay import ReplayedQuery, align, replay

PARTS = (
    "als",
    "als_last",
    "tower",
    "tower_last",
    "popularity",
    "cosine_sum",
    "same_day_sum",
    "reach_sum",
    "content_mean",
)
"""Features whose values depend on the model."""
_COLUMNS = [FEATURE_NAMES.index(part) for part in PARTS]
QUERIES = 500
"""Maximum queries per protocol whose candidates are ranked by each part."""
MAX_LOSS, STANDARD_ERRORS = 0.05, 3.0
"""A part is taken for corrupted if it ranks targets below this many more of the candidates than in
the holdout model, by more than this many standard errors."""


@dataclass(frozen=True)
class FinalCheck:
    """How a final model compares with its holdout model, and the problem, if any."""

    problem: str | None
    overlap: float
    """Mean share of the first ten items that their lists have in common."""
    parts: dict[str, tuple[float, float]]
    """part → mean share of the candidates that it ranks below a target: final, holdout model"""


@dataclass(frozen=True)
class PartRanks:
    """How each part of two models ranks the targets of the same queries."""

    final: Float64Array
    """(q, p) share of the candidates below the targets; one half is no better than chance"""
    twin: Float64Array
    """(q, p) the same by the holdout model"""

    def means(self) -> dict[str, tuple[float, float]]:
        """part → means of final and holdout model; empty without queries."""
        if not len(self.final):
            return {}
        pairs = zip(self.final.mean(axis=0).tolist(), self.twin.mean(axis=0).tolist(), strict=True)
        return dict(zip(PARTS, pairs, strict=True))

    def corrupted(self) -> list[str]:
        """Parts that rank the targets lower in the final model, beyond noise."""
        n = len(self.final)
        if n < MIN_USERS:
            return []
        loss = self.twin - self.final
        mean, error = loss.mean(axis=0), loss.std(axis=0) / np.sqrt(n)
        found = (mean > MAX_LOSS) & (mean > STANDARD_ERRORS * error)
        return [part for part, bad in zip(PARTS, found, strict=True) if bad]


def check(comparison: Comparison, overlap: float, ranks: PartRanks) -> FinalCheck:
    """Judge a final model by its comparison with the holdout model, and by its parts."""
    problem, parts = None, ranks.means()
    if comparison.interval is None and comparison.verdict == "refused":
        problem = f"the final model: {comparison.reason}"
    elif comparison.worse and comparison.difference is not None:
        problem = (
            f"the final model's {METRIC} is {-comparison.difference:.1%} below that of its "
            "holdout model, on interactions that only the final model has seen"
        )
    elif corrupted := ranks.corrupted():
        figures = ", ".join(
            f"{p} {parts[p][0]:.2f} instead of {parts[p][1]:.2f}" for p in corrupted
        )
        problem = f"the final model ranks targets lower than its holdout model: {figures}"
    return FinalCheck(problem, overlap, parts)


def part_ranks(holdout: Holdout, final: Contestant, twin: Contestant) -> PartRanks:
    """Rank the targets of a sample of queries among the holdout model's candidates."""
    ids = {*final.model.item_ids.tolist(), *twin.model.item_ids.tolist()}
    log = holdout.split.log.also(sorted(ids))
    models = [CandidateGenerator.exact(align(c.model, log.item_ids)) for c in (final, twin)]
    found = [
        _ranks_of(models, asked, sampled.targets[asked.row])
        for queries in holdout.queries.values()
        for sampled in [sample(queries, QUERIES, seed=0)]
        for asked in replay(log, sampled, holdout.known)
    ]
    both = np.array(found, np.float64).reshape(-1, 2, len(PARTS))
    return PartRanks(both[:, 0], both[:, 1])


def _ranks_of(
    models: list[CandidateGenerator], asked: ReplayedQuery, targets: IntArray
) -> list[Float64Array]:
    """(p,) shares below the targets by each model, the last of which retrieves the candidates."""
    queries = [model.query(asked.user, asked.trends) for model in models]
    targets = targets[targets >= 0]
    items = np.union1d(models[-1].retrieve(queries[-1]).items, targets).astype(np.int32)
    relevant = np.isin(items, targets)
    tables = (model.features(query, items) for model, query in zip(models, queries, strict=True))
    return [_share_below(table[:, _COLUMNS], relevant) for table in tables]


def _share_below(values: FloatArray, relevant: BoolArray) -> Float64Array:
    """(p,) mean share of the other candidates' values (c, p) below those of relevant ones.

    A missing value is the lowest; an equal one counts half.
    """
    known = np.where(np.isnan(values), -np.inf, values)
    target, others = known[relevant][:, None], known[~relevant][None]
    if not others.shape[1]:
        return np.full(values.shape[1], 0.5)
    below = (others < target) + 0.5 * (others == target)
    return np.asarray(below.mean(axis=(0, 1)), np.float64)

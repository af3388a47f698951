"""What a push attack does to the list of a visitor of whom nothing is known: the shop's trends.

Cheap, since it needs no model: so it is asked at several moments, with several attacks at each. At
a moment all visitors are shown the same ten items; they are measured by every trusted review of the
week that follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import Float64Array
from afterclick.quarantine import QuarantineLimits, apply_limits
from afterclick.trends import DAY_MS
from infra.benchmarks.attacked_lists import UNBOUND, Attack, AttackPlan, fakes, one_vote
from training.models.popularity import established, sums_at
from training.protocols import EvaluationSplit

MONTHS = 6
ATTACKS = 5
"""Moments before the cut, a month apart, and attacks at each, each on a target of its own."""
_DISCOUNT = 1 / np.log2(np.arange(2, 12))


@dataclass(frozen=True)
class Moment:
    """A shop at a moment, and what its visitors chose in the week after."""

    split: EvaluationSplit
    votes: Float64Array
    established: Float64Array
    chosen: NDArray[np.int64]
    """(n_items,) how often each item was"""

    @classmethod
    def of(cls, split: EvaluationSplit, cut_ms: int) -> Moment:
        now = EvaluationSplit(
            split.rows, cut_ms, cut_ms + 7 * int(DAY_MS), split.trusted, split.min_interactions
        )
        past, at = now.train, np.array([cut_ms])
        (_, votes, _), (_, theirs, _) = (
            *sums_at(past, at),
            *sums_at(past.where(established(past)), at),
        )
        return cls(now, votes, theirs, np.where(now.eligible, now.test().item_counts(), 0))

    def top(self, extra: Float64Array | None, bounds: QuarantineLimits) -> NDArray[np.intp]:
        """The ten items that are shown, with an attack's sums on top."""
        votes = self.votes if extra is None else self.votes + extra
        guarded = apply_limits(votes, self.established, bounds)
        heat = guarded.values @ guarded.weights
        return np.argsort(-np.where(self.split.eligible, heat, -np.inf), kind="stable")[:10]

    def gain(self, top: NDArray[np.intp]) -> float:
        """DCG of the list, over all that was chosen."""
        return float((self.chosen[top] * _DISCOUNT).sum())


def run(split: EvaluationSplit, plan: AttackPlan) -> dict[str, Any]:
    """The table: peace and each size of attack, without guards and with them."""
    cuts = [split.cut_ms - month * 30 * int(DAY_MS) for month in range(MONTHS)]
    shop = [Moment.of(split, cut) for cut in cuts]
    asked = sum(int(moment.chosen.sum()) for moment in shop)
    peace = sum(moment.gain(moment.top(None, UNBOUND)) for moment in shop)
    guarded = sum(moment.gain(moment.top(None, QuarantineLimits())) for moment in shop)

    def row(share: float, guards: bool, shown: float, gain: float) -> dict[str, Any]:
        figures = {
            "target_hr@10": shown,
            "ndcg@10": gain / asked,
            "ndcg_change": gain / peace - 1.0,
        }
        return {"share": share, "guards": guards, **figures}

    rows = [row(0.0, False, 0.0, peace), row(0.0, True, 0.0, guarded)]
    for share, guards in product(plan.shares, (False, True)):
        found = list(_attacks(shop, Attack(share, plan.fillers), guards, plan.seed))
        shown = float(np.mean([shown for shown, _ in found]))
        rows.append(row(share, guards, shown, sum(gain for _, gain in found) / ATTACKS))
    return {"moments": len(shop), "attacks": ATTACKS * len(shop), "reviews": asked, "rows": rows}


def _attacks(
    shop: list[Moment], attack: Attack, guards: bool, seed: int
) -> Iterator[tuple[bool, float]]:
    """Whether the target is in the list, and the list's gain: of each attack at each moment."""
    for moment in shop:
        split = moment.split
        counts = split.train.item_counts()
        rare = np.flatnonzero((counts >= split.min_interactions) & (counts <= 20))
        for n, target in enumerate(np.random.default_rng(seed).choice(rare, ATTACKS).tolist()):
            made = fakes(split.train, attack, target, split.cut_ms, seed + n)
            made = one_vote(made) if guards else made
            ((_, extra, _),) = sums_at(made, np.array([split.cut_ms]))
            top = moment.top(extra, QuarantineLimits() if guards else UNBOUND)
            yield target in top, moment.gain(top)

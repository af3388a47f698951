"""Push attacks on the list of new visitors, at moments that were used to choose the limits or not.

The attack (bandwagon attack, Burke et al., 2005): fake accounts each vote for one target several
times and for a few other items drawn by popularity. The list is the same for all visitors, so it
needs no model and is measured at several moments on every trusted review of the following week.

The limits (`afterclick/quarantine.py`) were chosen on Electronics with moments from May 2013 to
June 2014, two or five other items per account, rare targets and accounts of one week. Figures of
those moments are optimistic: `tuned` and `unseen` moments are therefore reported apart, rows say
whether an attack was `tuned` for, and each attack varies one property of the usual one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property

import numpy as np

from afterclick.arrays import Float64Array, IndexArray, Int64Array
from afterclick.quarantine import ESTABLISHED_DAYS, QuarantineLimits, apply_limits
from afterclick.trends import DAY_MS
from infra.benchmarks.harness import Figures
from training.event_log import EventLog
from training.interactions import Interactions
from training.models.popularity import sums_at
from training.protocols import EvaluationSplit

NO_LIMITS = QuarantineLimits(max_ratio=0.0)
TUNED = ("2013-05-01", "2014-06-08")
"""First and last day of the moments on which the limits were chosen."""
ATTACKS_PER_MOMENT = 5
BACKDATED_DAYS = 365
TARGET_BANDS = {"rare": (0, 20), "common": (21, 200), "popular": (201, 10**9)}
"""Interactions of a target before the attack; every target has enough to be ranked."""
_DISCOUNT = 1 / np.log2(np.arange(2, 12))
_RESAMPLES = 1000


@dataclass(frozen=True)
class Attack:
    """Size and shape of an attack. The defaults are those of the choice of the limits."""

    share: float
    """Fake accounts as a share of the genuine users before the cut."""
    fillers: int = 2
    """Other items per account; most genuine users have two or three reviews."""
    repeats: int = 3
    """Votes of each account for the target."""
    days: int = 7
    """Days before the cut over which the accounts vote for the target."""
    aged_days: int = 0
    """Days between the other votes of an account and those for the target: accounts of
    `ESTABLISHED_DAYS` count as established, which the limits do not touch."""
    backdated_days: int = 0
    """Days by which an account's other votes are dated before they reach the log."""
    target: str = "rare"
    """A key of TARGET_BANDS."""

    @property
    def tuned(self) -> bool:
        """Whether the limits were chosen with attacks of this shape."""
        return replace(self, fillers=2) == Attack(self.share) and self.fillers in (2, 5)


def variations(shares: Sequence[float], fillers: int) -> list[Attack]:
    """The attack of every size, and the largest one with one property changed."""
    usual = [Attack(share, fillers) for share in shares]
    largest = usual[-1]
    changed = [replace(largest, fillers=n) for n in (0, 5, 10, 20) if n != fillers]
    changed += [replace(largest, target=band) for band in TARGET_BANDS if band != "rare"]
    changed += [replace(largest, days=days) for days in (1, 28)]
    patient = [replace(each, aged_days=14) for each in dict.fromkeys((usual[0], largest))]
    backdated = [replace(each, backdated_days=BACKDATED_DAYS) for each in usual if fillers]
    return [*usual, *changed, *patient, *backdated]


def fake_events(past: EventLog, attack: Attack, target: int, guards: bool, seed: int) -> EventLog:
    """The attack's events up to the end of `past`, by accounts numbered after its users.

    With guards a repeated vote counts once, as in the stream, and an account is as old as the log
    says; without, each vote counts, and an account is as old as the events say.
    """
    random = np.random.default_rng(seed)
    accounts = round(attack.share * len(np.unique(past.user)))
    popularity = np.bincount(past.item, minlength=len(past.item_ids)) / max(len(past), 1)
    end_ms = int(past.time_ms[-1]) // int(DAY_MS) * int(DAY_MS) + int(DAY_MS)
    times = np.sort(end_ms - 1 - random.integers(0, attack.days * int(DAY_MS), accounts))
    fillers = random.choice(len(popularity), (accounts, attack.fillers), p=popularity)
    items = np.concatenate([fillers, np.full((accounts, 1), target)], axis=1).astype(np.int32)
    moments = np.repeat(times[:, None], items.shape[1], axis=1)
    moments[:, :-1] -= (attack.aged_days + attack.backdated_days) * int(DAY_MS)
    weight = np.full(items.shape, np.median(past.weight), np.float32)
    weight[:, -1] *= 1 if guards else attack.repeats
    fake_users = len(past.user_ids) + np.arange(accounts, dtype=np.int32)
    rows = Interactions(
        user_ids=np.concatenate([past.user_ids, [f"fake-{n}" for n in range(accounts)]]),
        item_ids=past.item_ids,
        user=np.repeat(fake_users, items.shape[1]),
        item=items.ravel(),
        time_ms=moments.ravel(),
        weight=weight.ravel(),
    )
    log = EventLog.of(rows, np.zeros(len(rows), bool))
    if not guards:  # accounts are as old as their clients say
        return log
    earlier = log.time_ms < end_ms - attack.days * int(DAY_MS)  # not the votes for the target
    delay = np.where(earlier, attack.backdated_days * int(DAY_MS), 0)
    return replace(log, trusted_ms=log.time_ms + delay)


@dataclass(frozen=True)
class AttackOutcome:
    """An attack on one target."""

    before: bool
    """Whether the list without limits and without the attack has the target."""
    listed: bool
    dcg: float


@dataclass(frozen=True)
class TrendMoment:
    """Decayed votes at a moment, and the items that visitors chose in the following week."""

    split: EvaluationSplit
    past: EventLog
    votes: Float64Array
    established: Float64Array
    chosen: Int64Array
    """(n_items,) trusted reviews in that week"""

    @classmethod
    def of(cls, split: EvaluationSplit, cut_ms: int) -> TrendMoment:
        week_end = cut_ms + 7 * int(DAY_MS)
        week = EvaluationSplit(split.log, cut_ms, week_end, split.min_interactions)
        past = split.log.before(cut_ms)
        chosen = np.bincount(week.test.item, minlength=len(split.log.item_ids))
        return cls(week, past, *votes_of(past, cut_ms), np.where(week.eligible, chosen, 0))

    @property
    def day(self) -> str:
        return _day(self.split.cut_ms)

    @property
    def tuned(self) -> bool:
        """Whether the limits were chosen with moments of that time."""
        return TUNED[0] <= self.day <= TUNED[1]

    @cached_property
    def baseline(self) -> tuple[IndexArray, float]:
        """The list without limits and without an attack, and its DCG."""
        top = self.top(self.votes, self.established, NO_LIMITS)
        return top, self.dcg(top)

    def top(
        self, votes: Float64Array, established_votes: Float64Array, limits: QuarantineLimits
    ) -> IndexArray:
        """The ten trending items."""
        return self.ranking(votes, established_votes, limits)[:10]

    def ranking(
        self, votes: Float64Array, established_votes: Float64Array, limits: QuarantineLimits
    ) -> IndexArray:
        """(n_items,) all items by trend score; those that are not eligible come last."""
        limited = apply_limits(votes, established_votes, limits)
        trend_score = limited.values @ limited.weights
        eligible_score = np.where(self.split.eligible, trend_score, -np.inf)
        return np.argsort(-eligible_score, kind="stable")

    def dcg(self, top: IndexArray) -> float:
        """DCG of the list, summed over the chosen items."""
        return float((self.chosen[top] * _DISCOUNT).sum())

    def without_attack(self, guards: bool) -> list[AttackOutcome]:
        """What the limits alone change."""
        limits = QuarantineLimits() if guards else NO_LIMITS
        top = self.top(self.votes, self.established, limits)
        return [AttackOutcome(False, False, self.dcg(top))]

    def attacked(self, attack: Attack, guards: bool, seed: int) -> list[AttackOutcome]:
        """An attack on each of some random targets; none if the band of targets is empty."""
        counts, (low, high) = self.split.train.item_counts(), TARGET_BANDS[attack.target]
        band = np.flatnonzero(self.split.eligible & (counts >= low) & (counts <= high))
        if not len(band):
            return self.without_attack(guards)
        targets = np.random.default_rng(seed).choice(band, ATTACKS_PER_MOMENT).tolist()
        return [self._attack(attack, guards, item, seed + n) for n, item in enumerate(targets)]

    def _attack(self, attack: Attack, guards: bool, target: int, seed: int) -> AttackOutcome:
        cut_ms = self.split.cut_ms
        fakes = fake_events(self.past, attack, target, guards, seed)
        votes, established_votes = votes_of(fakes, cut_ms)
        limits = QuarantineLimits() if guards else NO_LIMITS
        top = self.top(self.votes + votes, self.established + established_votes, limits)
        return AttackOutcome(target in self.baseline[0], target in top, self.dcg(top))


def votes_of(log: EventLog, cut_ms: int) -> tuple[Float64Array, Float64Array]:
    """(n_items, H) decayed sums of all votes, and of those by established users."""
    votes, moment = log.votes(), np.array([cut_ms])
    ((_, sums),) = sums_at(votes, moment)
    ((_, by_established),) = sums_at(votes.of_established(), moment)
    return sums, by_established


def trend_moments(split: EvaluationSplit, cuts: Sequence[int]) -> list[TrendMoment]:
    """The moments at these event times, ms, ascending."""
    return [TrendMoment.of(split, cut) for cut in sorted(cuts)]


def attack_trends(moments: Sequence[TrendMoment], attacks: Sequence[Attack], seed: int) -> Figures:
    """`tuned` and `unseen` moments: a row without an attack and one per attack, each without and
    with guards, and the worst outcome with guards."""
    groups = {
        "tuned": [moment for moment in moments if moment.tuned],
        "unseen": [moment for moment in moments if not moment.tuned],
    }
    return {name: _group(group, attacks, seed) for name, group in groups.items() if group}


def _group(moments: Sequence[TrendMoment], attacks: Sequence[Attack], seed: int) -> Figures:
    rows = []
    for attack in (None, *attacks):
        for guards in (False, True):
            outcomes = [
                moment.without_attack(guards)
                if attack is None
                else moment.attacked(attack, guards, seed)
                for moment in moments
            ]
            facts = {"share": 0.0} if attack is None else asdict(attack) | {"tuned": attack.tuned}
            rows.append(facts | {"guards": guards} | _row(moments, outcomes))
    return {
        "moments": [moment.day for moment in moments],
        "attacks": ATTACKS_PER_MOMENT * len(moments),
        "reviews": sum(int(moment.chosen.sum()) for moment in moments),
        "worst": _worst(rows),
        "three_percent": _of_share(rows, 0.03),
        "rows": rows,
    }


def _worst(rows: Sequence[Figures]) -> Figures:
    """The largest gain and the largest loss of quality with guards, by the age of the accounts."""
    guarded = [row for row in rows if row["guards"] and row["share"]]
    aged = [row for row in guarded if row["aged_days"] >= ESTABLISHED_DAYS]
    groups = {"new_accounts": [row for row in guarded if row not in aged], "aged_accounts": aged}
    return {
        name: {
            "target_gain": max(row["target_gain"] for row in group),
            "ndcg_change": min(row["ndcg_change"] for row in group),
            "moment_ndcg_change": min(row["worst_moment"]["ndcg_change"] for row in group),
        }
        for name, group in groups.items()
        if group
    }


def _of_share(rows: Sequence[Figures], share: float) -> Figures:
    """The worst outcome of new accounts that are this share of the users, with guards.

    `ndcg_loss` is what the attack costs the guarded list, without the cost of the guards.
    """
    guarded = [row for row in rows if row["guards"]]
    before = next(row["ndcg@10"] for row in guarded if not row["share"])
    group = [row for row in guarded if row["share"] == share and not row["aged_days"]]
    if not group:
        return {}
    return {
        "target_gain": max(row["target_gain"] for row in group),
        "ndcg_change": min(row["ndcg_change"] for row in group),
        "ndcg_loss": 1.0 - min(row["ndcg@10"] for row in group) / max(before, 1e-12),
    }


def _row(moments: Sequence[TrendMoment], outcomes: list[list[AttackOutcome]]) -> Figures:
    """Figures of an attack compared with the unguarded lists without one."""
    dcg = np.array([np.mean([each.dcg for each in found]) for found in outcomes])
    baseline = np.array([moment.baseline[1] for moment in moments])
    reviews = sum(int(moment.chosen.sum()) for moment in moments)
    changes = _change(dcg, baseline)
    worst = int(np.argmin(changes))
    flat = [each for found in outcomes for each in found]
    listed = float(np.mean([each.listed for each in flat]))
    return {
        "target_hr@10": listed,
        "target_gain": listed - float(np.mean([each.before for each in flat])),
        "ndcg@10": float(dcg.sum()) / max(reviews, 1),
        "ndcg_change": float(_change(dcg.sum(), baseline.sum())),
        "ndcg_change_interval": _interval(dcg, baseline),
        "worst_moment": {"day": moments[worst].day, "ndcg_change": float(changes[worst])},
    }


def _interval(dcg: Float64Array, baseline: Float64Array) -> list[float]:
    """95 % bootstrap interval of the relative change, over moments."""
    drawn = np.random.default_rng(0).integers(0, len(dcg), (_RESAMPLES, len(dcg)))
    changes = _change(dcg[drawn].sum(axis=1), baseline[drawn].sum(axis=1))
    return [float(q) for q in np.quantile(changes, [0.025, 0.975])]


def _change(dcg: Float64Array, baseline: Float64Array) -> Float64Array:
    return np.asarray(dcg / np.maximum(baseline, 1e-12) - 1.0)


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).date().isoformat()

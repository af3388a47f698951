"""`afterclick bench poison`: what a push attack gains, and what the guards cost genuine users.

The attack (bandwagon attack, Burke et al., 2005): fake accounts, created in the week before the
cut, each vote for one target several times and for a few other items drawn by popularity. Targets
are rarely bought items.

`lists` attacks the personal lists of a model: the gain is the share of genuine queries after the
cut with the target in the top ten, compared with the same queries without an attack; quality is
their NDCG@10. `trending` attacks the list of new visitors, which is the same for all of them: it
needs no model, so it is measured at several moments on every trusted review of the following week.

reads  a dataset (training/evaluation/reviews.py), or a generated shop
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from afterclick.arrays import Float64Array, IndexArray, Int64Array, IntArray
from afterclick.model import Model
from afterclick.quarantine import QuarantineLimits, apply_limits
from afterclick.settings import Settings
from afterclick.trends import DAY_MS
from infra.benchmarks.harness import Benchmark, Figures
from ingest.generate import generate_shop
from training.config import ModelConfig, ReplayConfig, TowerConfig
from training.evaluation import list_metrics
from training.evaluation.measure import FullRanking, answer
from training.evaluation.scorers import blend
from training.evaluation.time_split import split_of
from training.event_log import EventLog
from training.fit import ModelTrainer, trainer
from training.interactions import Interactions
from training.models.popularity import sums_at
from training.protocols import EvaluationSplit, Queries, as_of, queries, sample, with_history
from training.query_replay import align
from training.ranker import BoosterRanker

NO_LIMITS = QuarantineLimits(max_ratio=0.0)
MONTHS = 6
"""Moments of the trend attacks, a month apart."""
ATTACKS_PER_MOMENT = 5
_Z95 = 1.96
_DAYS = 7
"""Days before the cut in which accounts are created; queries are from 2 · _DAYS after it."""
_MAX_TARGET_INTERACTIONS = 20
_DISCOUNT = 1 / np.log2(np.arange(2, 12))


@dataclass(frozen=True)
class Attack:
    """Size and shape of an attack."""

    share: float
    """Fake accounts as a share of the genuine users before the cut."""
    fillers: int = 2
    """Other items per account; most genuine users have two or three reviews."""
    repeats: int = 3
    """Votes of each account for the target."""


@dataclass(frozen=True)
class AttackPlan:
    """The attacks to measure."""

    shares: tuple[float, ...] = (0.01, 0.03, 0.05)
    learned: float = 0.03
    """Share of the attack that the model is also trained on; 0: none."""
    targets: int = 3
    questions: int = 1000
    """Queries of users with history and a live event, and as many of new users."""
    fillers: int = Attack.fillers
    seed: int = 42


@dataclass(frozen=True)
class PushAttackBenchmark(Benchmark):
    dataset: Path | None = None
    cut: str | None = None
    """First day after the attack; None: as in an evaluation."""
    model: bool = True
    """Also fit a model and attack the personal lists: minutes, not seconds."""
    plan: AttackPlan = field(default_factory=AttackPlan)

    def run(self, settings: Settings) -> Figures:
        with _dataset(self.dataset) as dataset:
            split, data = split_of(settings, dataset, self.cut)
            figures: Figures = {"trending": attack_trends(split, self.plan)}
            if self.model:
                config = _small(ModelConfig.of(settings, "fast", "implicit"))
                with trainer(settings, data.texts, config) as models:
                    figures["lists"] = attack_lists(split, models, self.plan)
        return {"dataset": "generated" if self.dataset is None else "given", **figures}


def _small(config: ModelConfig) -> ModelConfig:
    """One past cut and one epoch of the towers suffice to see the effect of an attack."""
    ranker = replace(config.ranker, cuts=1, queries=4000)
    return replace(config, towers=TowerConfig(epochs=1), ranker=ranker)


@contextmanager
def _dataset(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with TemporaryDirectory(prefix="afterclick-push-attack-") as folder:
        generate_shop(Path(folder))
        yield Path(folder)


def fake_events(past: EventLog, attack: Attack, target: int, guards: bool, seed: int) -> EventLog:
    """The attack's events in the week before the end of `past`, by accounts numbered after its
    users.

    With guards a repeated vote counts once, as in the stream; without, each time.
    """
    random = np.random.default_rng(seed)
    accounts = round(attack.share * len(np.unique(past.user)))
    popularity = np.bincount(past.item, minlength=len(past.item_ids)) / max(len(past), 1)
    end_ms = int(past.time_ms[-1]) // int(DAY_MS) * int(DAY_MS) + int(DAY_MS)
    times = np.sort(end_ms - 1 - random.integers(0, _DAYS * int(DAY_MS), accounts))
    fillers = random.choice(len(popularity), (accounts, attack.fillers), p=popularity)
    items = np.concatenate([fillers, np.full((accounts, 1), target)], axis=1).astype(np.int32)
    weight = np.full(items.shape, np.median(past.weight), np.float32)
    weight[:, -1] *= 1 if guards else attack.repeats
    fake_users = len(past.user_ids) + np.arange(accounts, dtype=np.int32)
    rows = Interactions(
        user_ids=np.concatenate([past.user_ids, [f"fake-{n}" for n in range(accounts)]]),
        item_ids=past.item_ids,
        user=np.repeat(fake_users, items.shape[1]),
        item=items.ravel(),
        time_ms=np.repeat(times, items.shape[1]),
        weight=weight.ravel(),
    )
    return EventLog.of(rows, np.zeros(len(rows), bool))


@dataclass(frozen=True)
class ListQuality:
    """The lists of one situation for one target."""

    target_share: float
    """Share of the queries with the target in the top ten."""
    ndcg: Float64Array
    """(n_queries,) NDCG@10"""


@dataclass(frozen=True)
class _AttackedShop:
    """The split, the queries and the targets of all situations."""

    split: EvaluationSplit
    queries: Queries
    targets: list[int]
    ranker: BoosterRanker
    seed: int

    def attacked_log(self, attack: Attack, target: int, guards: bool) -> EventLog:
        """The split's log with an attack before the cut."""
        past = self.split.log.before(self.split.cut_ms)
        return self.split.log.merged(fake_events(past, attack, target, guards, self.seed))

    def lists(self, model: Model, log: EventLog, guards: bool) -> IntArray:
        """(n_queries, 10) the lists after these events."""
        eligible = self.split.eligible
        scorer = blend(align(model, log.item_ids), self.ranker, eligible)
        ranking = {"blend": FullRanking(scorer, eligible, self.seed)}
        return answer(log, self._queries_in(log), ranking, 10, _known(guards)).lists["blend"]

    def _queries_in(self, log: EventLog) -> Queries:
        """The queries with the rows of their live events in a log that holds more events."""
        own = np.flatnonzero(log.user < len(self.split.log.user_ids))
        live = self.queries.live
        return replace(self.queries, live=np.where(live >= 0, own[live], live).astype(np.int32))

    def measure(self, lists: IntArray, target: int) -> ListQuality:
        hits = list_metrics.hits_of(lists, self.queries.targets)
        ndcg = list_metrics.ndcg(hits, self.queries.n_targets, 10)
        share = float((lists == target).any(axis=1).mean())
        return ListQuality(share, np.asarray(ndcg, np.float64))

    def attack_trends_of(
        self, model: Model, attack: Attack, guards: bool
    ) -> dict[int, ListQuality]:
        """By target: lists of a model that was not trained on the attack."""
        quality = {}
        for target in self.targets:
            log = self.attacked_log(attack, target, guards)
            quality[target] = self.measure(self.lists(model, log, guards), target)
        return quality


def attack_lists(split: EvaluationSplit, guarded: ModelTrainer, plan: AttackPlan) -> Figures:
    """A row per situation. The ranker is fitted before the attack, as are most models."""
    unguarded = replace(guarded, config=replace(guarded.config, replay=_known(False)))
    past = split.log.before(split.cut_ms)
    ranker = BoosterRanker.of(unguarded.fit_ranker(past).text)
    shop = _AttackedShop(split, _queries(split, plan), _targets(split, plan), ranker, plan.seed)
    model = unguarded.fit(past, "without-attack").model
    baselines: dict[bool, dict[int, ListQuality]] = {}
    for guards in (False, True):
        lists = shop.lists(model, split.log, guards)
        baselines[guards] = {target: shop.measure(lists, target) for target in shop.targets}
    baseline = baselines[False]
    rows = [_row(quality, baseline, None, "none", guards) for guards, quality in baselines.items()]
    attacks = [Attack(share, plan.fillers) for share in plan.shares]
    for attack, guards in product(attacks, (False, True)):
        quality = shop.attack_trends_of(model, attack, guards)
        rows.append(_row(quality, baseline, attack, "trends", guards))
    for guards in (False, True) if plan.learned else ():
        attack, target = Attack(plan.learned, plan.fillers), shop.targets[0]
        attacked = shop.attacked_log(attack, target, guards)
        fit = (guarded if guards else unguarded).fit
        learned = fit(attacked.before(split.cut_ms), "attacked").model
        quality = {target: shop.measure(shop.lists(learned, attacked, guards), target)}
        rows.append(_row(quality, baseline, attack, "trends and model", guards))
    return {"questions": len(shop.queries), "targets": len(shop.targets), "rows": rows}


def _queries(split: EvaluationSplit, plan: AttackPlan) -> Queries:
    """Of the two weeks after the cut: users with a live event, and new users."""
    end = split.cut_ms + 2 * _DAYS * int(DAY_MS)
    live = with_history(split, queries(split, "live"))
    cold = as_of(queries(split, "cold"), split.cut_ms)
    parts = [
        sample(kind.where(kind.target_ms < end), plan.questions, plan.seed) for kind in (live, cold)
    ]
    return Queries.joined(parts)


def _known(guards: bool) -> ReplayConfig:
    return ReplayConfig() if guards else ReplayConfig(NO_LIMITS)


def _targets(split: EvaluationSplit, plan: AttackPlan) -> list[int]:
    """Random eligible items with few interactions."""
    rare = split.train.item_counts() <= _MAX_TARGET_INTERACTIONS
    items = np.flatnonzero(split.eligible & rare)
    random = np.random.default_rng(plan.seed)
    return [int(n) for n in random.choice(items, min(plan.targets, len(items)), replace=False)]


def _row(
    quality: Mapping[int, ListQuality],
    baseline: Mapping[int, ListQuality],
    attack: Attack | None,
    attacked: str,
    guards: bool,
) -> Figures:
    """Figures of a situation compared with the unguarded lists without an attack."""

    def share(of: Mapping[int, ListQuality]) -> float:
        return float(np.mean([of[target].target_share for target in quality]))

    before, after = (
        np.mean([of[target].ndcg for target in quality], axis=0) for of in (baseline, quality)
    )
    change = (after - before) / max(float(before.mean()), 1e-12)
    # the same queries before and after: a paired 95 % interval
    margin = _Z95 * float(change.std()) / len(change) ** 0.5
    gains = [quality[t].target_share - baseline[t].target_share for t in quality]
    return {
        "attack": attacked,
        **({"share": 0.0} if attack is None else asdict(attack)),
        "guards": guards,
        "target_hr@10": share(quality),
        "target_gain": share(quality) - share(baseline),
        "worst_gain": max(gains),
        "ndcg@10": float(after.mean()),
        "ndcg_change": float(change.mean()),
        "ndcg_change_interval": [float(change.mean()) - margin, float(change.mean()) + margin],
    }


@dataclass(frozen=True)
class TrendMoment:
    """Decayed votes at a moment, and the items that visitors chose in the following week."""

    split: EvaluationSplit
    votes: Float64Array
    established: Float64Array
    chosen: Int64Array
    """(n_items,) trusted reviews in that week"""

    @classmethod
    def of(cls, split: EvaluationSplit, cut_ms: int) -> TrendMoment:
        week_end = cut_ms + 7 * int(DAY_MS)
        week = EvaluationSplit(split.log, cut_ms, week_end, split.min_interactions)
        votes, moment = split.log.before(cut_ms).votes(), np.array([cut_ms])
        ((_, sums),) = sums_at(votes, moment)
        ((_, by_established),) = sums_at(votes.of_established(), moment)
        chosen = np.bincount(week.test.item, minlength=len(split.log.item_ids))
        return cls(week, sums, by_established, np.where(week.eligible, chosen, 0))

    def top(self, attack_votes: Float64Array | None, limits: QuarantineLimits) -> IndexArray:
        """The ten trending items, with an attack's votes added."""
        votes = self.votes if attack_votes is None else self.votes + attack_votes
        limited = apply_limits(votes, self.established, limits)
        trend_score = limited.values @ limited.weights
        eligible_score = np.where(self.split.eligible, trend_score, -np.inf)
        return np.argsort(-eligible_score, kind="stable")[:10]

    def dcg(self, top: IndexArray) -> float:
        """DCG of the list, summed over the chosen items."""
        return float((self.chosen[top] * _DISCOUNT).sum())

    def attacks(self, attack: Attack, guards: bool, seed: int) -> Iterator[tuple[bool, float]]:
        """Of each attack on a random target: whether the list has it, and the list's DCG."""
        counts, cut_ms = self.split.train.item_counts(), self.split.cut_ms
        rare = (counts >= self.split.min_interactions) & (counts <= _MAX_TARGET_INTERACTIONS)
        targets = np.random.default_rng(seed).choice(np.flatnonzero(rare), ATTACKS_PER_MOMENT)
        past = self.split.log.before(cut_ms)
        for n, target in enumerate(targets.tolist()):
            fakes = fake_events(past, attack, target, guards, seed + n)
            ((_, attack_votes),) = sums_at(fakes.votes(), np.array([cut_ms]))
            top = self.top(attack_votes, QuarantineLimits() if guards else NO_LIMITS)
            yield target in top, self.dcg(top)


def attack_trends(split: EvaluationSplit, plan: AttackPlan) -> Figures:
    """A row without an attack and one per size of attack, each without and with guards."""
    cuts = [split.cut_ms - month * 30 * int(DAY_MS) for month in range(MONTHS)]
    moments = [TrendMoment.of(split, cut) for cut in cuts]
    reviews = sum(int(moment.chosen.sum()) for moment in moments)
    baseline = sum(moment.dcg(moment.top(None, NO_LIMITS)) for moment in moments)
    guarded = sum(moment.dcg(moment.top(None, QuarantineLimits())) for moment in moments)

    def row(share: float, guards: bool, target_share: float, dcg: float) -> dict[str, Any]:
        return {
            "share": share,
            "guards": guards,
            "target_hr@10": target_share,
            "ndcg@10": dcg / reviews,
            "ndcg_change": dcg / baseline - 1.0,
        }

    rows = [row(0.0, False, 0.0, baseline), row(0.0, True, 0.0, guarded)]
    for share, guards in product(plan.shares, (False, True)):
        attack = Attack(share, plan.fillers)
        outcomes = [each for m in moments for each in m.attacks(attack, guards, plan.seed)]
        target_share = float(np.mean([listed for listed, _ in outcomes]))
        dcg = sum(dcg for _, dcg in outcomes) / ATTACKS_PER_MOMENT
        rows.append(row(share, guards, target_share, dcg))
    attacks = ATTACKS_PER_MOMENT * len(moments)
    return {"moments": len(moments), "attacks": attacks, "reviews": reviews, "rows": rows}

"""`afterclick bench poison`: what a push attack gains, and what the guards cost genuine users.

The attack is described in `infra/benchmarks/trend_attack.py`, which measures the list of new
visitors at several moments.

`lists` attacks the personal lists of a model: the gain is the share of genuine queries after the
cut with the target in the top ten, compared with the same queries without an attack; quality is
their NDCG@10.

reads  a dataset (training/evaluation/reviews.py), or a generated shop
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from afterclick.arrays import Float64Array, IntArray
from afterclick.model import Model
from afterclick.ranking import Ranker
from afterclick.settings import Settings
from afterclick.trends import DAY_MS
from infra.benchmarks.harness import Benchmark, Figures
from infra.benchmarks.skip_attack import attack_with_skips
from infra.benchmarks.trend_attack import (
    BACKDATED_DAYS,
    NO_LIMITS,
    TARGET_BANDS,
    Attack,
    attack_trends,
    fake_events,
    trend_moments,
    variations,
)
from ingest.generate import generate_shop
from training.config import ModelConfig, ReplayConfig, TowerConfig
from training.evaluation import list_metrics
from training.evaluation.measure import FullRanking, answer
from training.evaluation.scorers import blend
from training.evaluation.time_split import cut_of, split_of
from training.event_log import EventLog
from training.fit import ModelTrainer, trainer
from training.protocols import EvaluationSplit, Queries, as_of, queries, sample, with_history
from training.query_replay import align

MONTHS = 6
"""Moments of the trend attacks, a month apart, where none are given."""
_Z95 = 1.96
_QUERY_DAYS = 14
"""Queries are from this many days after the cut."""


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
    moments: tuple[str, ...] = ()
    """Days at whose start the trends are attacked; none: MONTHS months back from the cut."""


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
            plan = self.plan
            attacks = variations(plan.shares, plan.fillers)
            moments = trend_moments(split, _moments(split, plan))
            figures: Figures = {
                "trending": attack_trends(moments, attacks, plan.seed),
                "skips": attack_with_skips(moments),
            }
            if self.model:
                config = _small(ModelConfig.of(settings, "fast", "implicit"))
                with trainer(settings, data.texts, config) as models:
                    figures["lists"] = attack_lists(split, models, plan)
        return {"dataset": "generated" if self.dataset is None else "given", **figures}


def _small(config: ModelConfig) -> ModelConfig:
    """One past cut and one epoch of the towers suffice to see the effect of an attack."""
    ranker = replace(config.ranker, cuts=1, queries=4000)
    return replace(config, towers=TowerConfig(epochs=1), ncf=None, ranker=ranker)


@contextmanager
def _dataset(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with TemporaryDirectory(prefix="afterclick-push-attack-") as folder:
        generate_shop(Path(folder))
        yield Path(folder)


def _moments(split: EvaluationSplit, plan: AttackPlan) -> list[int]:
    """Event times, ms, of the trend attacks. Raises BadInput for a day outside the log."""
    if plan.moments:
        return [cut_of(split.log, day, "--moment") for day in plan.moments]
    return [split.cut_ms - month * 30 * int(DAY_MS) for month in range(MONTHS)]


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
    ranker: Ranker
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
    ranker = unguarded.fit_ranker(past).trees
    shop = _AttackedShop(split, _queries(split, plan), _targets(split, plan), ranker, plan.seed)
    model = unguarded.fit(past, "without-attack").model
    baselines: dict[bool, dict[int, ListQuality]] = {}
    for guards in (False, True):
        lists = shop.lists(model, split.log, guards)
        baselines[guards] = {target: shop.measure(lists, target) for target in shop.targets}
    baseline = baselines[False]
    rows = [_row(quality, baseline, None, "none", guards) for guards, quality in baselines.items()]
    attacks = [Attack(share, plan.fillers) for share in plan.shares]
    learned = replace(Attack(plan.learned, plan.fillers), backdated_days=BACKDATED_DAYS)
    attacks += [learned] if plan.learned else []
    for attack, guards in product(attacks, (False, True)):
        quality = shop.attack_trends_of(model, attack, guards)
        rows.append(_row(quality, baseline, attack, "trends", guards))
    for guards in (False, True) if plan.learned else ():
        target = shop.targets[0]
        attacked = shop.attacked_log(learned, target, guards)
        fit = (guarded if guards else unguarded).fit
        model = fit(attacked.before(split.cut_ms), "attacked").model
        quality = {target: shop.measure(shop.lists(model, attacked, guards), target)}
        rows.append(_row(quality, baseline, learned, "trends and model", guards))
    return {"questions": len(shop.queries), "targets": len(shop.targets), "rows": rows}


def _queries(split: EvaluationSplit, plan: AttackPlan) -> Queries:
    """Of the two weeks after the cut: users with a live event, and new users."""
    end = split.cut_ms + _QUERY_DAYS * int(DAY_MS)
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
    rare = split.train.item_counts() <= TARGET_BANDS["rare"][1]
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

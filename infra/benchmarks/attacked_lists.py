"""What a push attack gains, and what the guards against it cost everybody else.

The attack: accounts made for it, as many as a share of the genuine users, each at some moment of
the week before the cut. Each votes for one target, several times, and for a few items drawn by
their popularity, to be like anybody (the bandwagon attack of Burke et al., 2005). The target is an
item that hardly anybody buys.

Its gain is the share of genuine questions after the cut whose first ten places hold the target,
less the same without the attack. Genuine quality is NDCG@10 of the same questions, beside the
unguarded system in peace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.model import Model
from afterclick.quarantine import QuarantineLimits
from afterclick.trends import DAY_MS
from training.evaluation import list_metrics
from training.evaluation.measure import FullRanking, answer
from training.evaluation.scorers import blend
from training.fit import ModelTrainer
from training.interactions import Interactions
from training.protocols import EvaluationSplit, Queries, as_of, queries, sample, with_history
from training.query_replay import align
from training.ranker import BoosterRanker

UNBOUND = QuarantineLimits(max_ratio=0.0)
_Z95 = 1.96
"""Half of a 95 % interval, in standard errors: the same questions are asked before and after."""
_DAYS = 7
"""Days before the cut in which the accounts are made; questions come from twice as many after
it."""


@dataclass(frozen=True)
class Attack:
    """How the target is pushed."""

    share: float
    """Fake accounts, as a share of the genuine users before the cut."""
    fillers: int = 2
    """Other items each votes for. Most genuine users have two or three reviews in all."""
    repeats: int = 3
    """Votes of each for the target."""


@dataclass(frozen=True)
class AttackPlan:
    """What to try."""

    shares: tuple[float, ...] = (0.01, 0.03, 0.05)
    learned: float = 0.03
    """The attack that is also in what the model is trained on; 0: none."""
    targets: int = 3
    questions: int = 1000
    """Of users with a history and a live event, and of users nobody knows: so many of each."""
    fillers: int = Attack.fillers
    seed: int = 42


@dataclass(frozen=True)
class AttackResult:
    """The lists of one situation, measured."""

    shown: float
    """Share of the questions whose first ten places hold the target."""
    ndcg: NDArray[np.float64]
    """(q,) NDCG@10 of each question"""


def fakes(past: Interactions, attack: Attack, target: int, cut_ms: int, seed: int) -> Interactions:
    """The attack's rows alone, in order of time. Its accounts come after the genuine users of
    `past`."""
    random = np.random.default_rng(seed)
    accounts = round(attack.share * len(np.unique(past.user)))
    popularity = past.item_counts() / max(len(past), 1)
    times = np.sort(cut_ms - 1 - random.integers(0, _DAYS * int(DAY_MS), accounts))
    fillers = random.choice(len(popularity), (accounts, attack.fillers), p=popularity)
    items = np.concatenate([fillers, np.full((accounts, attack.repeats), target)], axis=1).astype(
        np.int32
    )
    return Interactions(
        user_ids=np.concatenate([past.user_ids, [f"fake-{n}" for n in range(accounts)]]),
        item_ids=past.item_ids,
        user=np.repeat(len(past.user_ids) + np.arange(accounts, dtype=np.int32), items.shape[1]),
        item=items.ravel(),
        time_ms=np.repeat(times, items.shape[1]),
        weight=np.full(items.size, np.median(past.weight), np.float32),
    )


def inject(rows: Interactions, attack: Attack, target: int, cut_ms: int, seed: int) -> Interactions:
    """The rows with the attack's among them, in order of time."""
    made = fakes(rows.before(cut_ms), attack, target, cut_ms, seed)
    names = ("user", "item", "time_ms", "weight")
    columns = {name: np.concatenate([getattr(rows, name), getattr(made, name)]) for name in names}
    order = np.argsort(columns["time_ms"], kind="stable")
    return replace(made, **{name: column[order] for name, column in columns.items()})


def one_vote(rows: Interactions) -> Interactions:
    """The newest row of each user and item alone, as the stream counts them."""
    pair = rows.user.astype(np.int64) * len(rows.item_ids) + rows.item
    _, last = np.unique(pair[::-1], return_index=True)
    keep = np.zeros(len(rows), bool)
    keep[len(rows) - 1 - last] = True
    return rows.where(keep)


@dataclass(frozen=True)
class _Shop:
    """What is attacked, and what is asked of it."""

    split: EvaluationSplit
    asked: Queries
    targets: list[int]
    ranker: BoosterRanker
    seed: int

    def attacked(self, attack: Attack, target: int, guards: bool) -> Interactions:
        """The rows with the attack among them."""
        rows = inject(self.split.rows, attack, target, self.split.cut_ms, self.seed)
        return one_vote(rows) if guards else rows

    def lists(self, model: Model, rows: Interactions, guards: bool) -> NDArray[np.int32]:
        """(q, 10) what is shown where these rows have happened."""
        eligible = self.split.eligible
        scorer = blend(align(model, rows.item_ids), self.ranker, eligible)
        ranking = {"blend": FullRanking(scorer, eligible, self.seed)}
        limits = None if guards else UNBOUND
        return answer(rows, self.asked, ranking, 10, limits).lists["blend"]

    def measure(self, lists: NDArray[np.int32], target: int) -> AttackResult:
        hits = list_metrics.hits_of(lists, self.asked.target)
        ndcg = list_metrics.ndcg(hits, np.ones(len(hits), np.int32), 10)
        return AttackResult(
            float((lists == target).any(axis=1).mean()), np.asarray(ndcg, np.float64)
        )


def run(split: EvaluationSplit, guarded: ModelTrainer, plan: AttackPlan) -> dict[str, Any]:
    """Every situation, as rows of a table. The ranker is the one learned before the attack."""
    free = replace(guarded, config=replace(guarded.config, quarantine=UNBOUND))
    past, trusted = split.train, split.trusted[split.rows.time_ms < split.cut_ms]
    ranker = BoosterRanker.of(free.fit_ranker(past, trusted).text)
    shop = _Shop(split, _questions(split, plan), _targets(split, plan), ranker, plan.seed)
    model = free.fit(past, "peace").model
    peace = {guards: shop.lists(model, split.rows, guards) for guards in (False, True)}
    found = {guards: {t: shop.measure(peace[guards], t) for t in shop.targets} for guards in peace}
    base = found[False]
    rows = [_row(found[guards], base, None, "none", guards) for guards in peace]
    attacks = [Attack(share, plan.fillers) for share in plan.shares]
    for attack, guards in product(attacks, (False, True)):
        lists = {
            t: shop.lists(model, shop.attacked(attack, t, guards), guards) for t in shop.targets
        }
        pushed = {t: shop.measure(lists[t], t) for t in shop.targets}
        rows.append(_row(pushed, base, attack, "trends", guards))
    for guards in (False, True) if plan.learned else ():
        attack, target = Attack(plan.learned, plan.fillers), shop.targets[0]
        seen = shop.attacked(attack, target, guards)
        trainer = guarded if guards else free
        learned = trainer.fit(seen.before(split.cut_ms), "attacked").model
        pushed = {target: shop.measure(shop.lists(learned, seen, guards), target)}
        rows.append(_row(pushed, base, attack, "trends and model", guards))
    return {"questions": len(shop.asked), "targets": len(shop.targets), "rows": rows}


def _questions(split: EvaluationSplit, plan: AttackPlan) -> Queries:
    """What comes in two weeks after the cut: of users with a live event, and of users nobody
    knows."""
    end = split.cut_ms + 2 * _DAYS * int(DAY_MS)
    live = with_history(split, queries(split, "live"))
    cold = as_of(queries(split, "cold"), split.cut_ms)
    parts = [
        sample(one.where(one.target_ms < end), plan.questions, plan.seed) for one in (live, cold)
    ]
    return Queries(
        *(
            np.concatenate([getattr(one, name) for one in parts])
            for name in ("user", "target", "target_ms", "now_ms", "live_item")
        )
    )


def _targets(split: EvaluationSplit, plan: AttackPlan) -> list[int]:
    """Items at random among those that are ranked and have 20 interactions at most."""
    counts = split.train.item_counts()
    rare = np.flatnonzero(split.eligible & (counts <= 20))
    chosen = np.random.default_rng(plan.seed).choice(
        rare, min(plan.targets, len(rare)), replace=False
    )
    return [int(item) for item in chosen]


def _row(
    found: Mapping[int, AttackResult],
    base: Mapping[int, AttackResult],
    attack: Attack | None,
    where: str,
    guards: bool,
) -> dict[str, Any]:
    def shown(of: Mapping[int, AttackResult]) -> float:
        return float(np.mean([of[target].shown for target in found]))

    before, after = (np.mean([of[target].ndcg for target in found], axis=0) for of in (base, found))
    peace = max(float(before.mean()), 1e-12)
    change = (after - before) / peace
    noise = _Z95 * float(change.std()) / len(change) ** 0.5
    return {
        "attack": where,
        **({"share": 0.0} if attack is None else asdict(attack)),
        "guards": guards,
        "target_hr@10": shown(found),
        "target_gain": shown(found) - shown(base),
        "worst_gain": max(found[t].shown - base[t].shown for t in found),
        "ndcg@10": float(after.mean()),
        "ndcg_change": float(change.mean()),
        "ndcg_change_interval": [float(change.mean()) - noise, float(change.mean()) + noise],
    }

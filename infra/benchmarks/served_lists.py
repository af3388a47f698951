"""What a ranker gains by learning from served lists: rounds of serve → log → retrain.

Three shops with the same simulated users (ingest/click_model.py) and the same first model. In one,
the ranker learns from served lists and from next items (`learner`), in the second from next items
only (`control`); the third keeps its first model (`frozen`). Lists are made by the candidates,
features and exploration of serving; user states and trends by the replay of training. The click
model knows the expected clicks of each list, so the difference is measured without the noise of
clicks, paired by user. What such a simulation can show and what not: `ingest/click_model.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from afterclick.arrays import Float64Array, IntArray
from afterclick.events import Action
from afterclick.ranking import CandidateGenerator, Ranker
from afterclick.retrieval import top_k
from afterclick.settings import StreamSettings
from ingest.click_model import GroundTruth, SeenItem, SimulatedUser
from ingest.datasets import open_dataset
from ingest.generate import ShopConfig, generate_shop
from ingest.items import read_items
from ingest.rows import ReadReport
from ingest.simulation import MAX_CATEGORY_SHARE
from serving.request import Options
from serving.rerank import explore
from training.config import AlsConfig, ModelConfig, RankerConfig
from training.evaluation import reviews
from training.event_log import CODES, EventLog
from training.fit import ModelTrainer
from training.models.als import implicit_als
from training.protocols import list_queries
from training.query_replay import ReplayedQuery, align, replay
from training.served_lists import ServedLists, position_decay

PAGE = 10
"""Items of a list."""
POOL = 60
"""Ranked items, from which a rank may explore."""
DAY_MS = 86_400_000
RESAMPLES = 2000
HOUR_MS = 3_600_000
SIGNALS = StreamSettings().signals


@dataclass(frozen=True)
class ServedListsBenchmark:
    """Rounds of visits by the users of both shops, each followed by a training."""

    rounds: int = 5
    shoppers: int = 300
    visits: int = 4
    """Lists that each user views per round, one a day."""
    explore: float = 0.1
    list_weight: float = 1.0
    seed: int = 7

    def run(self, progress: Callable[[str], None]) -> dict[str, Any]:
        """CTR of both arms by round, and the relative difference with its 95 % interval."""
        with tempfile.TemporaryDirectory() as temporary, threadpool_limits(1, "blas"):
            shop = _Shop.generated(Path(temporary), self)
            arms = {
                "learner": _Arm(shop, self, self.list_weight),
                "control": _Arm(shop, self, 0.0),
                "frozen": _Arm(shop, self, 0.0),
            }
            curve = []
            served = dict.fromkeys(arms, arms["frozen"].train())
            for number in range(self.rounds):
                for name, arm in arms.items():
                    if number and name != "frozen":
                        served[name] = arm.train()
                    arm.serve(number, served[name])
                curve.append(_round(number, arms, self))
                progress(str(curve[-1]))
        # the models of the first round have seen no list
        clicks = {name: arm.expected[1:].sum(axis=0) for name, arm in arms.items()}
        return {
            "shoppers": self.shoppers,
            "position_decay": position_decay(arms["learner"].log.lists),
            "rounds": curve,
            "over": {
                name: _difference(clicks["learner"], clicks[name], self.seed)
                for name in ("control", "frozen")
            },
        }


@dataclass(frozen=True)
class _Shop:
    """A generated shop, its reviews, and the users who will visit it."""

    log: EventLog
    trainer: ModelTrainer
    items: list[SeenItem]
    """In the order of the log's items."""
    categories: tuple[str, ...]
    first_user: int

    @classmethod
    def generated(cls, folder: Path, plan: ServedListsBenchmark) -> _Shop:
        generate_shop(folder / "shop", ShopConfig(days=400))
        data = reviews.load(folder / "shop", SIGNALS)
        dataset = open_dataset(folder / "shop")
        assert dataset.items is not None
        listed = list(read_items(dataset.items, ReadReport()))
        log = data.log.also([item.item_id for item in listed])
        known = {item.item_id: item.categories for item in listed}
        items = [SeenItem(name, known.get(name, ())) for name in log.item_ids.tolist()]
        names = [name for item in listed for name in item.categories]
        wide = MAX_CATEGORY_SHARE * len(listed)
        categories = tuple(sorted(name for name in set(names) if names.count(name) <= wide))
        users = np.array([f"sim-{n}" for n in range(plan.shoppers)])
        first = len(log.user_ids)
        log = replace(log, user_ids=np.concatenate([log.user_ids, users]))
        ranker = RankerConfig(cuts=1, horizon_days=45, queries=3000, trees=60)
        config = ModelConfig(AlsConfig(rank=16), ranker=ranker, towers=None, ncf=None)
        trainer = ModelTrainer(config, data.texts, implicit_als)
        return cls(log, trainer, items, categories, first)


@dataclass(frozen=True)
class _ShownList:
    """A list that a user saw, and what they did with its places."""

    user: int
    items: IntArray
    propensities: Float64Array
    actions: list[tuple[int, Action]]
    """Place and action, in order."""
    moment: int

    def time_ms(self, number: int) -> int:
        """Event time of the action with this number."""
        return self.moment + 1000 * (number + 1)


@dataclass(frozen=True)
class _Served:
    """What makes the lists of a round."""

    generator: CandidateGenerator
    ranker: Ranker


class _Arm:
    """One shop: its log, its model, and its copies of the users."""

    def __init__(self, shop: _Shop, plan: ServedListsBenchmark, list_weight: float) -> None:
        self._shop, self._plan, self.log = shop, plan, shop.log
        config = shop.trainer.config
        ranker = replace(config.ranker, list_weight=list_weight)
        self._trainer = replace(shop.trainer, config=replace(config, ranker=ranker))
        self._users = [
            SimulatedUser.create(f"sim-{n}", shop.categories, plan.seed)
            for n in range(plan.shoppers)
        ]
        self._truth = GroundTruth(plan.seed)
        self._random = np.random.default_rng(plan.seed)
        self._options = Options(explore=plan.explore)
        self._shown: list[_ShownList] = []
        self.expected = np.zeros((plan.rounds, plan.shoppers))
        """Expected clicks by round and user."""
        self.clicks = np.zeros((plan.rounds, plan.shoppers), int)

    def train(self) -> _Served:
        """Fit the model and the ranker on the log so far."""
        model = self._trainer.fit(self.log, "m").model
        ranker = self._trainer.fit_ranker(self.log).trees
        return _Served(CandidateGenerator.exact(align(model, self.log.item_ids)), ranker)

    def serve(self, number: int, served: _Served) -> None:
        """Let each user view the lists of one round, one a day, at another hour each day."""
        self._served = served
        hours = np.random.default_rng((self._plan.seed, number)).integers(0, 12, self._plan.visits)
        start_ms = int(self._shop.log.time_ms[-1]) + DAY_MS
        users = np.arange(self._plan.shoppers, dtype=np.int32) + self._shop.first_user
        for visit in range(self._plan.visits):
            moment = start_ms + (number * self._plan.visits + visit) * DAY_MS
            moment += int(hours[visit]) * HOUR_MS
            times = np.full(len(users), moment, np.int64)
            asked = list_queries(replace(ServedLists.empty(), user=users, time_ms=times))
            known = self._trainer.config.replay
            visits = (self._visit(number, one, moment) for one in replay(self.log, asked, known))
            self._append([shown for shown in visits if shown.actions])

    def _visit(self, number: int, query: ReplayedQuery, moment: int) -> _ShownList:
        items, propensities = self._listed(query)
        who = query.user_index - self._shop.first_user
        page = [self._shop.items[item] for item in items.tolist()]
        visit = self._users[who].visit(page, self._truth)
        self.expected[number, who] += visit.expected_clicks
        self.clicks[number, who] += visit.clicks
        places = {item.item_id: place for place, item in enumerate(page)}
        actions = [(places[action.item_id], action.action) for action in visit.actions]
        return _ShownList(query.user_index, items, propensities, actions, moment)

    def _listed(self, query: ReplayedQuery) -> tuple[IntArray, Float64Array]:
        """The items of a list and their propensities."""
        if len(query.user.items):
            generator, ranker = self._served.generator, self._served.ranker
            ranking = generator.query(query.user, query.trends)
            items = generator.retrieve(ranking).items
            scores = ranker.score(generator.features(ranking, items))
        else:
            scores = query.trends.trend_score.copy()
            scores[query.user.seen] = -np.inf
            items = np.arange(len(scores), dtype=np.int32)
        best = top_k(scores, POOL)
        items, scores = items[best], scores[best]
        places = np.arange(len(items))
        found = explore(places[:PAGE], places[PAGE:], scores, self._options, self._random)
        return items[found.rows], found.propensities

    def _append(self, shown: list[_ShownList]) -> None:
        """Add the actions on lists, and the lists, to the log."""
        self._shown += shown
        rows = [
            (one.user, one.items[place], one.time_ms(n), action, one.propensities[place], place)
            for one in shown
            for n, (place, action) in enumerate(one.actions)
        ]
        if not rows:
            return
        user, item, times, actions, propensity, place = zip(*rows, strict=True)
        more = replace(
            self.log,
            user=np.array(user, np.int32),
            item=np.array(item, np.int32),
            time_ms=np.array(times, np.int64),
            trusted_ms=np.array(times, np.int64),
            action=np.array([CODES[action] for action in actions], np.int8),
            stars=np.zeros(len(rows), np.int8),
            weight=np.array([SIGNALS.weight(action) for action in actions], np.float32),
            trusted=np.ones(len(rows), bool),
            propensity=np.array(propensity, np.float32),
            position=np.array(place, np.int16),
        )
        self.log = replace(self.log.merged(more), lists=_lists(self._shown))


def _lists(shown: list[_ShownList]) -> ServedLists:
    sizes = [len(one.items) for one in shown]
    grades = []
    for one in shown:
        grade = np.zeros(len(one.items), np.float32)
        for place, action in one.actions:
            weight = SIGNALS.weight(action)
            grade[place] = max(grade[place], weight) if weight > 0 else grade[place] or weight
        grades.append(grade)
    return ServedLists(
        np.array([one.user for one in shown], np.int32),
        np.array([one.time_ms(0) for one in shown], np.int64),
        np.array([one.time_ms(len(one.actions) - 1) for one in shown], np.int64),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.intp),
        np.concatenate([one.items for one in shown]).astype(np.int32),
        np.concatenate([np.arange(size) for size in sizes]).astype(np.int32),
        np.concatenate([one.propensities for one in shown]).astype(np.float32),
        np.concatenate(grades),
        np.zeros(sum(sizes), np.int32),
        np.full((len(shown), 2), np.nan),
    )


def _round(number: int, arms: Mapping[str, _Arm], plan: ServedListsBenchmark) -> dict[str, Any]:
    """CTR of one round, and its difference."""
    shown = plan.shoppers * plan.visits * PAGE
    figures: dict[str, Any] = {"round": number + 1}
    for name, arm in arms.items():
        figures[f"{name}_ctr_percent"] = round(100 * float(arm.expected[number].sum()) / shown, 2)
        figures[f"{name}_clicks"] = int(arm.clicks[number].sum())
    learner, control = (arms[name].expected[number] for name in ("learner", "control"))
    return figures | _difference(learner, control, plan.seed)


def _difference(learner: Float64Array, control: Float64Array, seed: int) -> dict[str, Any]:
    """Relative difference of expected clicks (u,), and its 95 % interval: bootstrap over users."""
    random = np.random.default_rng(seed)
    draws = random.integers(0, len(learner), (RESAMPLES, len(learner)))
    ratios = np.sort(learner[draws].sum(axis=1) / control[draws].sum(axis=1) - 1.0)
    low, high = (float(ratios[int(RESAMPLES * q)]) for q in (0.025, 0.975))
    values = {"lift": float(learner.sum() / control.sum() - 1.0), "low": low, "high": high}
    return {f"{name}_percent": round(100 * value, 1) for name, value in values.items()}

"""The ranker learns from past events only, and beats its candidate sources."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from afterclick.model import Model
from training import ranker
from training.config import NeighbourConfig, RankerConfig, ReplayConfig
from training.evaluation.measure import ItemFacts, freshness, measure
from training.evaluation.scorers import ScorerInputs, scorers
from training.evaluation.time_split import answer_all
from training.event_log import EventLog
from training.interactions import Interactions
from training.models.neighbours import cosine_neighbours, same_day_neighbours
from training.models.popularity import first_seen, popularity
from training.models.transition_graph import transition_graph
from training.protocols import EvaluationSplit, moments, queries, with_history
from training.query_replay import replay
from training.ranker import FitPast, FittedRanker, NotEnoughHistory, past_splits

DAY = 86_400_000
CONFIG = RankerConfig(
    cuts=2, horizon_days=60, queries=400, negatives=20, trees=20, leaves=15, seed=1
)


def companion_shop(users: int = 1500, items: int = 120, days: int = 400) -> Interactions:
    """Buyers of an even item buy its odd companion soon after, in two of three cases.

    Users are active at random times, so only the live event predicts the companion."""
    random = np.random.default_rng(11)
    rows = []
    for number in range(users):
        day = int(random.integers(0, days - 3))
        first = int(random.integers(items // 2)) * 2
        rows.append((number, first, day))
        second = first + 1 if random.random() < 2 / 3 else int(random.integers(items))
        if second != first:
            rows.append((number, second, day + int(random.integers(0, 3))))
    rows.sort(key=lambda row: row[2])
    user, item, days_at = (np.array([row[side] for row in rows]) for side in range(3))
    return Interactions(
        np.array([f"u{n}" for n in range(users)]),
        np.array([f"i{n}" for n in range(items)]),
        user.astype(np.int32),
        item.astype(np.int32),
        days_at * DAY,
        np.full(len(rows), 2.0, np.float32),
    )


def build(log: EventLog) -> Model:
    """A model without ALS: quick, and its features stay unknown."""
    return build_on(log.pairs())


def build_on(rows: Interactions) -> Model:
    config = NeighbourConfig(count=10)
    cosine = cosine_neighbours(rows, config)
    same_day = same_day_neighbours(rows, config)
    return Model(
        "test",
        rows.item_ids,
        popularity(rows),
        first_seen(rows),
        *cosine,
        *same_day,
    )


@pytest.fixture(scope="module")
def shop() -> Interactions:
    return companion_shop()


@pytest.fixture(scope="module")
def split(shop: Interactions) -> EvaluationSplit:
    return EvaluationSplit(EventLog.of(shop), 340 * DAY, 400 * DAY)


def train(split: EvaluationSplit, config: RankerConfig, fit: FitPast = build) -> FittedRanker:
    found = ranker.collect(split.log.before(split.cut_ms), fit, config, ReplayConfig())
    return ranker.learn(found, config)


@pytest.fixture(scope="module")
def blend(split: EvaluationSplit) -> FittedRanker:
    return train(split, CONFIG)


def test_the_blend_uses_the_live_event_and_beats_every_source(
    shop: Interactions, split: EvaluationSplit, blend: FittedRanker
) -> None:
    model = build_on(split.train)
    inputs = ScorerInputs(model, blend.trees, transition_graph(split.train))
    answers = answer_all(split, lambda eligible: scorers(inputs, eligible, reduced=True))
    profiles = np.full(len(shop.user_ids), np.nan)
    facts = ItemFacts(
        split.train.item_counts(), np.zeros((len(model), 1), np.float32), 120, 1500, profiles
    )
    live = measure([answers["live"]], facts)
    frozen = measure([answers["frozen"]], facts)
    assert live["blend"]["hr@10"] > 0.6  # two of three are predictable
    assert live["blend"]["ndcg@10"] >= max(live[name]["ndcg@10"] for name in live) - 0.02
    assert frozen["blend"]["hr@10"] < 0.3  # ten of 120 by chance are 0.08
    assert live["blend_brief"]["hr@10"] > 0.4  # a reduced list uses the live event, too
    gain = freshness({p: [found] for p, found in answers.items()}, "blend")
    assert gain["hr@10"] == pytest.approx(live["blend"]["hr@10"] - frozen["blend"]["hr@10"])
    assert gain["hr@10_interval"][0] > 0.3
    parts = gain["parts"]
    assert parts["live_event"]["hr@10_interval"][0] > 0.3
    assert sum(parts[p]["hr@10"] for p in ("live_event", "trends", "staleness")) == pytest.approx(
        gain["hr@10"]
    )


def test_without_a_history_the_blend_lists_trending_items(
    split: EvaluationSplit, blend: FittedRanker
) -> None:
    inputs = ScorerInputs(build_on(split.train), blend.trees, transition_graph(split.train))
    scorer = scorers(inputs, split.eligible)["blend"]
    asked = queries(split, "cold")
    for one in replay(split.log, asked.where(np.arange(len(asked)) < 3)):
        assert not len(one.user.items)
        np.testing.assert_array_equal(scorer(one), one.trends.trend_score)


def test_the_blend_learns_from_users_with_a_history(split: EvaluationSplit) -> None:
    known = with_history(split, moments(split))
    history = split.train.user_counts()[known.user]
    assert ((known.live >= 0).any(axis=1) | (history > 0)).all()
    assert 0 < len(known) < len(moments(split))


def test_the_report_of_the_blend_lists_what_it_learned(blend: FittedRanker) -> None:
    assert blend.queries > 100
    assert 0.5 < blend.candidate_recall <= 1.0
    assert sum(blend.importance.values()) == pytest.approx(1.0)
    near = sum(v for k, v in blend.importance.items() if k.startswith(("cosine", "same_day")))
    assert near > 0.5


def test_the_same_seed_learns_the_same_blend(split: EvaluationSplit) -> None:
    short = replace(CONFIG, trees=5)
    first, second = train(split, short).trees, train(split, short).trees
    assert np.array_equal(first.features, second.features)
    assert np.array_equal(first.borders, second.borders)
    assert np.array_equal(first.parts, second.parts)


def test_past_cuts_never_overlap_and_leave_most_rows_before_them(split: EvaluationSplit) -> None:
    past = split.log.before(split.cut_ms)
    found = list(past_splits(past, replace(CONFIG, cuts=9)))
    assert 2 <= len(found) < 9
    for newer, older in pairwise(found):
        assert older.end_ms == newer.cut_ms
    assert all(2 * len(s.train) >= len(past) for s in found)


def test_models_of_past_cuts_see_nothing_after_them(split: EvaluationSplit) -> None:
    newest: list[int] = []

    def watch(log: EventLog) -> Model:
        newest.append(int(log.time_ms.max()))
        return build(log)

    train(split, replace(CONFIG, trees=2), watch)
    cuts = [s.cut_ms for s in past_splits(split.log.before(split.cut_ms), CONFIG)]
    assert len(newest) == len(cuts) == 2
    assert all(latest < cut for latest, cut in zip(newest, cuts, strict=True))


def test_a_model_may_have_other_items_in_another_order(split: EvaluationSplit) -> None:
    def some(log: EventLog) -> Model:
        rows = log.pairs()
        model = build_on(rows.choose(rows.item_counts() >= 3))
        assert model.item_ids.tolist() != rows.item_ids.tolist() or len(model) == len(rows.item_ids)
        return model

    assert train(split, replace(CONFIG, trees=5), some).candidate_recall > 0.5


def test_too_short_a_past_is_rejected(shop: Interactions) -> None:
    few = EventLog.of(shop.where(np.arange(len(shop)) < 40))
    with pytest.raises(NotEnoughHistory, match="50 are needed"):
        ranker.collect(few, build, CONFIG, ReplayConfig())

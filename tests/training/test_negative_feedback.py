"""What a user skipped becomes a negative of the ranker's queries, with the features of serving."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from afterclick.events import Action
from afterclick.features import FEATURE_NAMES, features
from afterclick.model import Model
from afterclick.settings import StreamSettings
from afterclick.state import HistoryEntry
from afterclick.user_vectors import UserState, UserVectors
from tests.training.test_ranker import build
from training import ranker
from training.config import RankerConfig, ReplayConfig
from training.event_log import EventLog
from training.interactions import Interactions
from training.models import boosted_trees
from training.protocols import EvaluationSplit, moments, with_history
from training.query_replay import replay
from training.ranker import RankerExamples

DAY = 86_400_000
KINDS, PER_KIND, USERS = 6, 20, 600
CONFIG = RankerConfig(cuts=1, horizon_days=60, queries=400, negatives=20, trees=20, min_rows=20)
_COLUMN = {name: column for column, name in enumerate(FEATURE_NAMES)}


def kind_of(item: int) -> int:
    return item // PER_KIND


def rows_of(events: list[tuple[int, int, int]], weight: float) -> Interactions:
    """Events (user, item, time) as interactions."""
    user, item, times = np.array(sorted(events, key=lambda e: e[2])).T
    return Interactions(
        np.array([f"u{n:03}" for n in range(USERS)]),
        np.array([f"i{n:03}" for n in range(KINDS * PER_KIND)]),
        user.astype(np.int32),
        item.astype(np.int32),
        times.astype(np.int64),
        np.full(len(user), weight, np.float32),
    )


def log_with_skips() -> EventLog:
    """Users who like an item, skip two of one kind, choose one of another kind, and skip again."""
    random = np.random.default_rng(5)
    liked, skipped = [], []
    for user in range(USERS):
        start = int(random.integers(0, 300 * 24)) * (DAY // 24)
        disliked, first, chosen = random.choice(KINDS, 3, replace=False)
        own, other = (random.choice(PER_KIND, 3, replace=False) for _ in range(2))
        liked.append((user, int(first * PER_KIND + other[0]), start))
        liked.append((user, int(chosen * PER_KIND + other[1]), start + 600_000))
        for n, minutes in enumerate((1, 2, 11)):
            skipped.append((user, int(disliked * PER_KIND + own[n]), start + 60_000 * minutes))
    positive = EventLog.of(rows_of(liked, 2.0), action=Action.LIKE)
    return positive.merged(EventLog.of(rows_of(skipped, -1.0), action=Action.SKIP))


def fit(log: EventLog) -> Model:
    """Neighbours, and content by kind."""
    content = np.eye(KINDS, dtype=np.float32).repeat(PER_KIND, axis=0)
    return replace(build(log), content=content)


@pytest.fixture(scope="module")
def log() -> EventLog:
    return log_with_skips()


@pytest.fixture(scope="module")
def found(log: EventLog) -> RankerExamples:
    return ranker.collect(log, fit, CONFIG, ReplayConfig())


def test_skipped_items_are_negatives_and_earlier_skips_show_in_their_features(
    found: RankerExamples, log: EventLog
) -> None:
    disliked = ~np.isnan(found.rows[:, _COLUMN["disliked_share"]])
    same_kind = found.rows[:, _COLUMN["disliked_content_max"]] > 0.5
    assert disliked.mean() > 0.3
    # the last item of a query is the one that the user skips next
    last = np.cumsum(found.groups) - 1
    assert (found.grades[last] == 0).all()
    assert same_kind[last].mean() > 0.3
    # control: without skips the columns are unknown, and the queries have random negatives only
    plain = ranker.collect(log.where(log.weight > 0), fit, CONFIG, ReplayConfig())
    assert np.isnan(plain.rows[:, _COLUMN["disliked_share"]]).all()
    assert plain.groups.max() < found.groups.max()


def test_a_ranker_that_has_seen_skips_lowers_items_similar_to_them(found: RankerExamples) -> None:
    trees = ranker.learn(found, CONFIG).trees
    assert any(name.startswith("disliked") for name in trees.features.ravel().tolist())
    rows = found.rows[~np.isnan(found.rows[:, _COLUMN["disliked_share"]])]
    low, high = rows.copy(), rows.copy()
    low[:, [_COLUMN["disliked_share"], _COLUMN["disliked_content_max"]]] = 0.0
    high[:, _COLUMN["disliked_share"]], high[:, _COLUMN["disliked_content_max"]] = 0.6, 1.0
    assert trees.score(high).mean() < trees.score(low).mean() - 0.1


def test_columns_without_values_do_not_change_what_is_learned(log: EventLog) -> None:
    plain = ranker.collect(log.where(log.weight > 0), fit, CONFIG, ReplayConfig())
    gains = plain.grades / plain.grades.max()
    with_columns = boosted_trees.boost(plain.rows, gains, plain.groups, CONFIG)
    new = [name for name in FEATURE_NAMES if name.startswith(("disliked", "days_since"))]
    used = dict(zip(FEATURE_NAMES, with_columns.feature_importance().tolist(), strict=True))
    assert not any(used[name] for name in new)


def test_training_and_serving_compute_the_same_features_of_dislikes(log: EventLog) -> None:
    split = EvaluationSplit(log, 250 * DAY, 400 * DAY, min_interactions=0)
    asked = with_history(split, moments(split))
    model, signals = fit(log), StreamSettings().signals
    index = {name: n for n, name in enumerate(log.item_ids.tolist())}
    candidates = np.arange(KINDS * PER_KIND, dtype=np.int32)
    checked = 0
    for query in replay(log, asked.where(np.arange(40))):
        mine = np.flatnonzero((log.user == query.user_index) & (log.time_ms < query.user.now_ms))
        live = asked.live[query.row]
        stored = [
            HistoryEntry(
                str(row),
                str(log.item_ids[log.item[row]]),
                Action.SKIP if log.weight[row] < 0 else Action.LIKE,
                None,
                int(log.time_ms[row]),
            )
            for row in [*live[live >= 0], *mine[::-1]]
        ]
        served = UserState.of(stored, index.get, signals, query.user.now_ms)
        served_rows, rows = (
            features(model, UserVectors.of(model, state), query.trends, candidates)
            for state in (served, query.user)
        )
        np.testing.assert_array_equal(served_rows, rows)
        checked += bool(len(served.disliked))
    assert checked > 5

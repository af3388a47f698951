"""Features of candidates: the value of each column, and NaN for unknown ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from afterclick.events import Action
from afterclick.features import FEATURE_NAMES, PRIOR_WEIGHT, TrendView
from afterclick.model import Model
from afterclick.settings import StreamSettings
from afterclick.signals import Signals
from afterclick.state import HistoryEntry
from afterclick.trends import HALF_LIVES_MS, HOUR_MS
from afterclick.user_vectors import UserState
from tests.scoring.examples import DAY, NOW_MS, a_model, a_state, a_view, features_of, late

WEIGHTS = dict.fromkeys(Action, 1.0) | {Action.SKIP: -1.0, Action.PURCHASE: 3.0}
SIGNALS = Signals(WEIGHTS, StreamSettings().star_weights)


def column(rows: np.ndarray, name: str) -> np.ndarray:
    return rows[:, FEATURE_NAMES.index(name)]


def items(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def test_the_neighbour_of_the_newest_item_scores_its_cosine() -> None:
    rows = features_of(a_model(), a_state([2, 4]), a_view(), items(3, 5, 0))
    np.testing.assert_allclose(column(rows, "cosine_last"), [0.5, 0.0, 0.0])
    np.testing.assert_allclose(column(rows, "cosine_max"), [0.5, 0.5, 0.0])
    np.testing.assert_allclose(column(rows, "cosine_sum"), [0.5, 0.25, 0.0])
    np.testing.assert_allclose(column(rows, "same_day_last"), [0.0, 0.0, 0.0])


def test_items_of_the_random_walk_score_its_weight() -> None:
    reach: dict[str, Any] = {
        "random_walk_items": np.full((6, 1), 5, np.int32),
        "random_walk_scores": np.full((6, 1), 0.5, np.float32),
    }
    rows = features_of(a_model(**reach), a_state([2, 4]), a_view(), items(5, 1))
    np.testing.assert_allclose(column(rows, "reach_last"), [0.5, 0.0])
    np.testing.assert_allclose(column(rows, "reach_sum"), [0.75, 0.0])


def test_a_click_changes_the_features_of_similar_items() -> None:
    before = features_of(a_model(), a_state([0]), a_view(), items(5))
    after = features_of(a_model(), a_state([4, 0]), a_view(), items(5))
    assert column(before, "cosine_last")[0] == 0.0
    assert column(after, "cosine_last")[0] == 0.5


def test_a_trend_is_the_log_of_the_share_of_all_interactions() -> None:
    rows = features_of(a_model(4), a_state([0]), a_view(4, hot=3), items(3, 1))
    np.testing.assert_allclose(column(rows, "trend_week"), np.log2([100 / 103, 1 / 103]), rtol=1e-6)


def test_an_item_without_events_has_the_lowest_trend_and_no_nan() -> None:
    values = np.zeros((3, len(HALF_LIVES_MS)))
    values[0] = 1e-300
    view = TrendView.of(values, np.full(3, NOW_MS))
    assert np.isfinite(view.log_share).all()
    assert view.log_share[1, 0] == view.log_share.min()
    assert view.top.tolist() == [0]


def test_a_click_in_a_quiet_hour_makes_no_record_trend() -> None:
    daily = np.random.default_rng(2).exponential(size=1000)
    busy = np.outer(daily, list(HALF_LIVES_MS.values())) / HOUR_MS
    quiet = busy.copy()
    quiet[:, 0] = 0.0
    quiet[17, 0] = 1.0  # one click, by anybody
    hour = TrendView.of(quiet, np.zeros(1000)).log_share[:, 0]
    day = TrendView.of(quiet, np.zeros(1000)).log_share[:, 1]
    usual = TrendView.of(busy, np.zeros(1000)).log_share[:, 0]
    others = np.arange(1000) != 17
    np.testing.assert_allclose(hour[others], day[others], atol=0.02)
    assert hour[17] > day[17]
    assert hour[17] < usual.max() + 1.0  # without a prior it is the whole hour: log2(1) = 0


def test_shares_of_a_busy_shop_are_its_own() -> None:
    values = np.random.default_rng(3).uniform(1e6, 5e6, (50, len(HALF_LIVES_MS)))
    share = np.exp2(TrendView.of(values, np.zeros(50)).log_share)
    np.testing.assert_allclose(share, values / values.sum(axis=0), rtol=1e-3)
    np.testing.assert_allclose(share.sum(axis=0), 1.0, rtol=1e-5)


def test_a_share_shrinks_towards_the_next_longer_half_life() -> None:
    values = np.zeros((2, len(HALF_LIVES_MS)))
    values[:, -1] = 30.0, 10.0
    values[:, -2] = 0.0, PRIOR_WEIGHT
    share = np.exp2(TrendView.of(values, np.zeros(2)).log_share)
    np.testing.assert_allclose(share[:, -1], [0.75, 0.25], rtol=1e-6)
    np.testing.assert_allclose(share[:, -2], [0.75 / 2, (1 + 0.25) / 2], rtol=1e-6)
    np.testing.assert_allclose(share[:, 0], share[:, -2], rtol=1e-6)  # nothing of its own


def test_the_trend_score_favours_recent_and_lasting_interactions() -> None:
    values = np.ones((3, len(HALF_LIVES_MS)))
    values[1] = 2.0
    values[2, 0] = 50.0  # an hour's burst that was gone the next day
    view = TrendView.of(values, np.full(3, NOW_MS))
    assert view.trend_score.argmax() == 1
    assert view.trend_score[2] == view.trend_score[0] > 0


def test_trends_of_an_empty_system_are_finite() -> None:
    view = TrendView.of(np.zeros((3, len(HALF_LIVES_MS))), np.full(3, np.nan))
    assert np.isfinite(view.log_share).all()
    assert not len(view.top)


def test_a_new_item_is_scored_by_its_trend() -> None:
    rows = features_of(a_model(6), a_state([2]), a_view(8, hot=7), items(7, 3))
    assert column(rows, "trend_day")[0] > column(rows, "trend_day")[1]
    assert np.isnan(column(rows, "als")[0])
    assert np.isnan(column(rows, "content_last")[0])
    assert column(rows, "cosine_last").tolist() == [0.0, 0.5]
    for name in ("popularity", "item_age_days", "arrival_rate", "age_gap_days"):
        assert np.isnan(column(rows, name)[0])
        assert np.isfinite(column(rows, name)[1])


def test_an_item_without_interactions_has_no_popularity_and_no_age() -> None:
    model = a_model(3, popularity=np.array([4, 0, 1], np.float32))
    model.first_seen_ms[1] = np.nan
    rows = features_of(model, a_state([1, 2]), a_view(3), items(0, 1))
    for name in ("popularity", "item_age_days", "arrival_rate"):
        assert np.isnan(column(rows, name)).tolist() == [False, True]
    assert np.isnan(column(rows, "last_popularity")).all()
    assert column(rows, "taste_popularity")[0] == pytest.approx(np.log2(1 + 1))  # of item 2 alone


def test_a_new_item_has_the_similarity_of_its_content() -> None:
    model = a_model(6)
    content = late(model, 1, None)
    rows = features_of(model, a_state([1, 2]), a_view(8), items(6, 7, 1, 0), content=content)
    np.testing.assert_allclose(column(rows, "content_last"), [1, np.nan, 1, 0])
    np.testing.assert_allclose(column(rows, "content_mean"), [0.5, np.nan, 0.5, 0])
    assert np.isnan(column(rows, "als")[0])
    alone = features_of(model, a_state([6]), a_view(8), items(1, 0, 7), content=content)
    np.testing.assert_allclose(column(alone, "content_last"), [1, 0, np.nan])
    after_nothing = features_of(model, a_state([7, 6]), a_view(8), items(1), content=content)
    assert np.isnan(column(after_nothing, "content_last")[0])
    assert column(after_nothing, "content_mean")[0] == 1


def test_a_history_of_new_items_leaves_neighbour_features_zero() -> None:
    rows = features_of(a_model(6), a_state([7, 6]), a_view(8), items(0, 1))
    assert column(rows, "cosine_last").tolist() == [0.0, 0.0]
    assert np.isnan(column(rows, "als")).all()
    assert column(rows, "history_length").tolist() == [2.0, 2.0]


def test_a_user_without_history_is_scored_by_trends_alone() -> None:
    rows = features_of(a_model(), a_state([]), a_view(hot=2), items(1, 2))
    assert np.isnan(column(rows, "cosine_last")).all()
    assert column(rows, "history_length").tolist() == [0.0, 0.0]
    assert np.isfinite(column(rows, "trend_hour")).all()


def test_a_model_without_als_and_content_leaves_their_features_unknown() -> None:
    rows = features_of(a_model(factors=None, content=None), a_state([2]), a_view(), items(3))
    for name in ("als", "als_last", "content_last", "content_mean"):
        assert np.isnan(column(rows, name)).all()


def test_ages_are_in_days() -> None:
    rows = features_of(a_model(), a_state([2], age_days=3.0), a_view(), items(3))
    assert column(rows, "last_age_days")[0] == pytest.approx(3.0)
    assert column(rows, "item_age_days")[0] == pytest.approx(10.0)


def test_an_item_newer_than_the_last_one_has_a_positive_age_gap() -> None:
    model = a_model()
    model.first_seen_ms[3] += 4 * 86_400_000
    rows = features_of(model, a_state([2]), a_view(), items(3, 1))
    assert column(rows, "age_gap_days").tolist() == [4.0, 0.0]
    assert column(rows, "last_popularity")[0] == pytest.approx(np.log2(1 + 4))


def test_an_item_with_more_recent_sales_has_a_positive_rise() -> None:
    values = np.ones((2, len(HALF_LIVES_MS)))
    values[0, list(HALF_LIVES_MS).index("week")] = 3.0
    rows = features_of(
        a_model(2), a_state([]), TrendView.of(values, np.full(2, NOW_MS)), items(0, 1)
    )
    assert column(rows, "rise")[0] > 0 > column(rows, "rise")[1]


MIDNIGHT = np.floor(NOW_MS / DAY) * DAY


def seen_at(hours: list[float], now: float) -> UserState:
    """A user whose events were at these hours of the day."""
    many = np.arange(len(hours), dtype=np.int32)
    times = MIDNIGHT + np.array(hours) * HOUR_MS
    return UserState(many, np.ones(len(hours), np.float32), times, many, MIDNIGHT + now * HOUR_MS)


def times_of(model: Model, state: UserState) -> list[list[float]]:
    names = ("last_age_days", "session_length", "item_age_days", "taste_age_days")
    rows = features_of(model, state, a_view(), items(5))
    return [np.round(column(rows, name), 6).tolist() for name in names]


@pytest.mark.parametrize("phase", [0.0, 5 * HOUR_MS])
def test_a_model_of_daily_data_sees_days_only(phase: float) -> None:
    seen = np.full(6, MIDNIGHT - 3 * DAY + phase)
    model = a_model(first_seen_ms=seen, resolution_ms=DAY, phase_ms=phase)
    start = phase / HOUR_MS
    learned = times_of(model, seen_at([start, start - 24], now=start))
    assert learned == times_of(model, seen_at([start + 9, start - 1], now=start + 9.5))
    assert learned == [[0.0], [1.0], [3.0], [2.5]]
    exact = a_model(first_seen_ms=seen)
    assert times_of(exact, seen_at([start + 9, start - 1], now=start + 9.5)) != learned


def test_trends_shorter_than_the_resolution_are_unknown() -> None:
    rows = features_of(a_model(resolution_ms=DAY), a_state([2]), a_view(), items(3))
    assert np.isnan(column(rows, "trend_hour")).all()
    others = [name for name in FEATURE_NAMES if name.startswith("trend_") and name != "trend_hour"]
    assert all(np.isfinite(column(rows, name)).all() for name in others)


def test_an_event_after_now_is_of_now() -> None:
    rows = features_of(a_model(), seen_at([15], now=3), a_view(), items(3))
    assert column(rows, "last_age_days")[0] == 0.0


def test_a_skipped_item_is_seen_but_not_liked() -> None:
    index = {"a": 0, "b": 1}
    history = [
        HistoryEntry("3", "b", Action.SKIP, None, 30),
        HistoryEntry("2", "gone", Action.CLICK, None, 20),
        HistoryEntry("1", "a", Action.PURCHASE, None, 10),
    ]
    state = UserState.of(history, index.get, SIGNALS, 100.0)
    assert state.items.tolist() == [0]
    assert state.weights.tolist() == [3.0]
    assert sorted(state.seen.tolist()) == [0, 1]


def test_an_undo_cancels_earlier_actions_and_no_later_ones() -> None:
    history = [
        HistoryEntry("5", "b", Action.LIKE, None, 50),
        HistoryEntry("4", "b", Action.UNDO, None, 40),
        HistoryEntry("3", "a", Action.UNDO, None, 30),
        HistoryEntry("2", "b", Action.PURCHASE, None, 20),
        HistoryEntry("1", "a", Action.SKIP, None, 10),
        HistoryEntry("0", "a", Action.LIKE, None, 5),
    ]
    state = UserState.of(history, {"a": 0, "b": 1}.get, SIGNALS, 100.0)
    assert (state.items.tolist(), state.weights.tolist(), state.times_ms.tolist()) == (
        [1],
        [1.0],
        [50.0],
    )
    assert state.seen.tolist() == [1]


def test_an_undo_at_the_same_time_wins_in_any_order() -> None:
    like, undo = (
        HistoryEntry("x", "a", Action.LIKE, None, 10),
        HistoryEntry("u", "a", Action.UNDO, None, 10),
    )
    for history in ([like, undo], [undo, like]):
        state = UserState.of(history, {"a": 0}.get, SIGNALS, 100.0)
        assert not len(state.items)
        assert not len(state.seen)


def test_an_item_counts_once_at_its_newest_time_with_its_strongest_action() -> None:
    history = [
        HistoryEntry("2", "a", Action.CLICK, None, 20),
        HistoryEntry("1", "a", Action.PURCHASE, None, 10),
    ]
    state = UserState.of(history, {"a": 0}.get, SIGNALS, 100.0)
    assert (state.items.tolist(), state.weights.tolist(), state.times_ms.tolist()) == (
        [0],
        [WEIGHTS[Action.PURCHASE]],
        [20.0],
    )


def review(rating: float | None, time_ms: int) -> HistoryEntry:
    return HistoryEntry(f"{rating}-{time_ms}", "a", Action.REVIEW, rating, time_ms)


@pytest.mark.parametrize(
    ("history", "weights"),
    [
        ([review(1.0, 20)], []),
        ([review(1.0, 20), review(5.0, 10)], []),
        ([review(5.0, 20), review(1.0, 10)], [2.0]),
        ([review(3.0, 20), review(5.0, 10)], [0.5]),
        ([review(5.0, 20), review(1.0, 20)], [2.0]),  # at one time: most stars
        ([review(None, 20), review(1.0, 10)], [1.0]),
        ([review(1.0, 20), HistoryEntry("p", "a", Action.PURCHASE, None, 10)], []),
        ([HistoryEntry("p", "a", Action.PURCHASE, None, 30), review(1.0, 20)], [3.0]),
    ],
)
def test_the_newest_review_of_an_item_decides(
    history: list[HistoryEntry], weights: list[float]
) -> None:
    for entries in (history, [*history, *history[1:]]):
        state = UserState.of(entries, {"a": 0}.get, SIGNALS, 100.0)
        assert (state.weights.tolist(), state.seen.tolist()) == (weights, [0])


def test_dislikes_show_by_content_by_shared_users_and_by_age() -> None:
    state = replace(
        a_state([0]),
        disliked=np.array([1, 3], np.int32),
        disliked_ms=np.array([NOW_MS - 2 * DAY, NOW_MS - 3 * DAY]),
    )
    rows = features_of(a_model(6), state, a_view(6), np.array([2, 4, 5], np.int32))
    np.testing.assert_array_equal(column(rows, "disliked_count"), [2, 2, 2])
    np.testing.assert_allclose(column(rows, "disliked_age_days"), [2, 2, 2])
    np.testing.assert_allclose(column(rows, "disliked_cosine_max"), [0.5, 0.5, 0.0])
    assert np.isnan(column(rows, "disliked_share")[1:]).all()  # without content
    plain = features_of(a_model(6), a_state([0]), a_view(6), np.array([2], np.int32))
    assert np.isnan(column(plain, "disliked_count")).all()


def test_a_bought_item_has_the_days_since_its_purchase() -> None:
    state = replace(
        a_state([0]),
        purchased=np.array([4, 2], np.int32),
        purchased_ms=np.array([NOW_MS - 5 * DAY, NOW_MS - 9 * DAY]),
    )
    rows = features_of(a_model(6), state, a_view(6), np.array([2, 3, 4], np.int32))
    np.testing.assert_allclose(column(rows, "days_since_purchase"), [9, np.nan, 5])

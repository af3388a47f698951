"""Evaluation queries and the state at their time, without data of the future."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pytest

from afterclick.arrays import FloatArray, IntArray
from afterclick.features import FEATURE_NAMES, TrendView, features
from afterclick.model import Model
from afterclick.quarantine import QuarantineLimits, apply_limits
from afterclick.trends import TrendTable
from afterclick.user_vectors import UserState, UserVectors
from tests.scoring.examples import a_model, a_view
from training.config import ReplayConfig
from training.evaluation.holdout import Holdout
from training.evaluation.measure import top_n
from training.event_log import EventLog
from training.interactions import Interactions
from training.models.popularity import trends_at
from training.protocols import (
    MAX_WEIGHT,
    PROTOCOLS,
    UNBIASED_USERS,
    EvaluationSplit,
    every_choice,
    moments,
    queries,
    sample,
)
from training.query_replay import align, replay

DAY = 86_400_000
CUT = 100 * DAY


def split_of(
    rows: Sequence[tuple[str, str, float]],
    untrusted: Collection[int] = (),
    min_interactions: int = 1,
) -> EvaluationSplit:
    """Rows (user, item, day), in order of time; the cut is day 100."""
    rows = sorted(rows, key=lambda row: row[2])
    users, items = (sorted({row[side] for row in rows}) for side in (0, 1))
    data = Interactions(
        np.array(users),
        np.array(items),
        np.array([users.index(u) for u, _, _ in rows], np.int32),
        np.array([items.index(i) for _, i, _ in rows], np.int32),
        np.array([int(day * DAY) for _, _, day in rows], np.int64),
        np.ones(len(rows), np.float32),
    )
    trusted = np.array([row not in untrusted for row in range(len(rows))])
    return EvaluationSplit(EventLog.of(data, trusted), CUT, 200 * DAY, min_interactions)


# ann has five items before the cut, bob one, cy none
PAST = [("ann", f"i{n}", 10 + n) for n in range(5)] + [("bob", "i0", 20)]


Asked = tuple[str, frozenset[str], str | None, float]


def asked(split: EvaluationSplit, protocol: str) -> list[Asked]:
    """(user, targets, live item, day of the query)"""
    log, found = split.log, queries(split, protocol)
    return [
        (
            str(log.user_ids[user]),
            frozenset(log.item_ids[targets[targets >= 0]].tolist()),
            str(log.item_ids[log.item[live[0]]]) if live[0] >= 0 else None,
            now / DAY,
        )
        for user, targets, live, now in zip(
            found.user, found.targets, found.live, found.now_ms, strict=True
        )
    ]


def one(user: str, target: str, live: str | None, day: float) -> list[Asked]:
    return [(user, frozenset({target}), live, day)]


def test_queries_of_returning_users_target_their_first_test_item() -> None:
    split = split_of(
        [*PAST, ("dan", "i5", 5), ("ann", "i5", 110), ("ann", "i6", 111), ("bob", "i1", 112)]
    )
    assert asked(split, "returning") == one("ann", "i5", None, 100)


def test_cold_users_have_no_past() -> None:
    split = split_of([*PAST, ("cy", "i1", 110), ("bob", "i1", 112)])
    assert asked(split, "cold") == one("cy", "i1", None, 100)


def test_live_queries_target_the_second_item_after_the_first() -> None:
    split = split_of(
        [*PAST, ("cy", "i1", 110), ("cy", "i2", 111), ("cy", "i3", 120), ("bob", "i4", 130)]
    )
    assert asked(split, "live") == one("cy", "i2", "i1", 110)
    assert asked(split, "trends") == one("cy", "i2", None, 110)
    assert asked(split, "nightly") == one("cy", "i2", None, 109)
    assert asked(split, "frozen") == one("cy", "i2", None, 100)
    assert asked(split, "live_later") == one("cy", "i2", "i1", 110)
    assert asked(split, "live_same_day") == []


def test_targets_from_lists_of_the_champion_weigh_by_inverse_propensity() -> None:
    """And nothing, where enough users have other targets and the list had no exploration."""
    shown = {"cy": 1.0, "dan": 0.25, "eve": float("nan"), "fay": 0.01}
    rows = [(user, f"i{n}", 109 + n) for user in shown for n in (1, 2)]
    split = split_of([*PAST, *rows])
    log = split.log
    propensity = np.array([shown.get(user, np.nan) for user in log.user_ids[log.user]], np.float32)
    organic = np.where(log.time_ms == 111 * DAY, propensity, np.float32(np.nan))
    found = queries(replace(split, log=replace(log, propensity=organic)), "live")
    order = np.argsort(log.user_ids[found.user])
    assert found.organic[order].tolist() == [False, False, True, False]
    assert found.weight[order].tolist() == [1.0, 4.0, 1.0, MAX_WEIGHT]
    assert found.weights(min_users=3)[order].tolist() == [0.0, 4.0, 1.0, MAX_WEIGHT]
    assert found.weights(min_users=4)[order].tolist() == found.weight[order].tolist()


@pytest.mark.parametrize(("others", "weight"), [(UNBIASED_USERS, 0.0), (UNBIASED_USERS - 1, 1.0)])
def test_the_gate_prefers_questions_without_the_lists_of_the_champion(
    others: int, weight: float
) -> None:
    users = ["cy", *(f"organic-{n}" for n in range(others))]
    split = split_of([*PAST, *((user, f"i{n}", 110 + n) for user in users for n in (1, 2))])
    log = split.log
    propensity = np.where(log.user_ids[log.user] == "cy", np.float32(1.0), np.float32(np.nan))
    split = replace(split, log=replace(log, propensity=propensity))
    asked = Holdout.of(split, 10 * UNBIASED_USERS, 42, ReplayConfig()).questions
    mine = log.user_ids[asked.user] == "cy"
    assert asked.weights[mine].tolist() == [weight]
    assert (asked.weights[~mine] == 1.0).all()
    assert asked.own_share == pytest.approx(1 / (others + 1))


def test_items_of_one_moment_are_a_set_without_order() -> None:
    """One member is the live event, and every other one is a hit."""
    rows = [*PAST, *(("cy", f"i{n}", 110) for n in range(1, 5)), ("cy", "i0", 112)]
    ((user, targets, live, day),) = asked(split_of(rows), "live")
    assert (user, day, len(targets)) == ("cy", 110, 3)
    assert targets | {live} == {"i1", "i2", "i3", "i4"}
    assert asked(split_of(rows), "live_same_day") == asked(split_of(rows), "live")
    assert asked(split_of(rows), "live_later_day") == one("cy", "i0", live, 110)
    reordered = [*PAST, *reversed(rows[len(PAST) : -1]), rows[-1]]
    assert asked(split_of(reordered), "live") == asked(split_of(rows), "live")


def test_the_live_event_of_a_set_does_not_depend_on_the_order_of_item_ids() -> None:
    users = [f"user-{n}" for n in range(400)]
    split = split_of([*PAST, *((user, item, 110) for user in users for item in ("i1", "i2"))])
    first = [live for _, _, live, _ in asked(split, "live")]
    assert 150 < first.count("i1") < 250
    assert first.count("i1") + first.count("i2") == 400


def test_queries_of_a_later_day_know_the_earlier_events_of_the_user() -> None:
    split = split_of(
        [*PAST, ("cy", "i1", 110), ("bob", "i3", 112), ("cy", "i2", 115), ("cy", "i0", 115)]
    )
    assert asked(split, "back") == [("cy", frozenset({"i2", "i0"}), None, 115)]
    (found,) = replay(split.log, queries(split, "back"))
    known = split.log.item_ids[found.user.items].tolist()
    assert (known, found.user.times_ms.tolist()) == (["i1"], [110 * DAY])


def test_an_item_with_too_few_training_rows_is_no_target_but_may_be_a_live_event() -> None:
    split = split_of(
        [*PAST, ("cy", "new", 110), ("cy", "i0", 111), ("bob", "new", 111)], min_interactions=2
    )
    assert asked(split, "live") == one("cy", "i0", "new", 110)
    assert asked(split, "returning") == []


def test_cold_items_have_their_own_queries() -> None:
    split = split_of(
        [*PAST, ("cy", "i1", 110), ("cy", "new", 111), ("dan", "new", 112)], min_interactions=2
    )
    assert asked(split, "cold_items") == one("cy", "new", "i1", 110)
    assert asked(split, "live_all") == one("cy", "new", "i1", 110)
    assert asked(split, "live") == []
    assert split.eligible.sum() == 1
    assert split.of_every_item.eligible.all()


def test_rows_with_a_guessed_time_are_neither_target_nor_live_event() -> None:
    rows = [*PAST, ("cy", "i1", 110), ("cy", "i2", 111), ("cy", "i3", 112)]
    assert asked(split_of(rows, untrusted={6}), "live") == one("cy", "i3", "i2", 111)


def test_learning_queries_target_every_next_set() -> None:
    split = split_of([*PAST, ("cy", "i1", 110), ("cy", "i2", 111), ("cy", "i3", 112)])
    found, item = moments(split), split.log.item
    assert [item[live[0]] if live[0] >= 0 else -1 for live in found.live] == [-1, 1, 2]
    assert found.first_target.tolist() == [1, 2, 3]


def test_learning_queries_split_a_set_into_live_events_and_targets() -> None:
    rows = [("cy", f"i{n}", 110.0) for n in range(6)]
    sizes = set()
    for seed in range(100):
        found = moments(split_of([("ann", f"i{n}", 10) for n in range(6)] + rows), seed)
        first, within = (found.where(np.array([n])) for n in range(2))
        assert (int(first.n_targets[0]), int(first.live.max())) == (6, -1)
        live = set(split_of(rows).log.item[within.live[within.live >= 0] - 6].tolist())
        assert live | set(within.targets[within.targets >= 0].tolist()) == set(range(6))
        sizes.add(len(live))
    assert sizes == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_log_that_ends_at_the_cut_has_no_queries(protocol: str) -> None:
    assert len(queries(split_of(PAST), protocol)) == 0


def test_every_choice_is_a_query_and_a_set_shows_one_of_its_members_before() -> None:
    rows = [("ann", "i9", 101.0), ("ann", "i8", 103.0), ("cy", "i1", 101.0), ("cy", "i2", 101.0)]
    split = split_of([*PAST, *rows], min_interactions=5)
    log, found = split.log, every_choice(split)
    names = [str(log.user_ids[user]) for user in found.user]
    targets = [{str(log.item_ids[i]) for i in row if i >= 0} for row in found.targets]
    live = [str(log.item_ids[log.item[row]]) if row >= 0 else None for row in found.live[:, 0]]
    assert names == ["ann", "ann", "cy"]
    assert (found.now_ms / DAY).tolist() == [101.0, 103.0, 101.0]
    assert targets[:2] == [{"i9"}, {"i8"}]
    assert live[:2] == [None, None]
    assert targets[2] | {live[2]} == {"i1", "i2"}
    assert not len(every_choice(split_of(PAST)))


def test_an_unknown_protocol_is_rejected() -> None:
    with pytest.raises(ValueError, match="expected one of"):
        queries(split_of(PAST), "hindsight")


def test_a_sample_is_the_same_for_the_same_seed() -> None:
    found = queries(split_of([*PAST, *((f"c{n}", "i1", 110 + n) for n in range(40))]), "cold")
    one, two = sample(found, 10, 5), sample(found, 10, 5)
    assert len(one) == 10
    assert one.user.tolist() == two.user.tolist()


def test_a_state_contains_the_live_event_and_no_other_event_of_its_day() -> None:
    past = [*PAST, ("dan", "i5", 5), ("dan", "i6", 6)]
    split = split_of(
        [*past, ("ann", "i5", 110), ("ann", "i6", 110), ("bob", "i6", 110), ("bob", "i5", 110)]
    )
    found = queries(split, "live")
    states = {
        str(split.log.user_ids[found.user[each.row]]): each for each in replay(split.log, found)
    }
    live, *earlier = states["ann"].user.items.tolist()
    assert live in (5, 6)
    assert earlier == [4, 3, 2, 1, 0]
    assert states["ann"].user.times_ms[0] == 110 * DAY == states["ann"].user.now_ms
    # items 5 and 6 were bought by two users that very day: unknown yet
    log = split_of(past).log
    ((_, trends),) = trends_at(log, np.array([110 * DAY]))
    known = TrendView.of(trends.values, log.first_seen())
    np.testing.assert_array_equal(states["bob"].trends.log_share, known.log_share)


def test_trends_of_a_replay_are_those_that_serving_holds() -> None:
    """Parity: the same rows through the table of the stream and through the evaluation's arrays."""
    random = np.random.default_rng(3)
    genuine = [
        (f"u{n % 300}", f"i{random.integers(25)}", float(random.uniform(0, 90)))
        for n in range(1500)
    ]
    fakes = [(f"fake{n}", "i3", float(random.uniform(88, 90))) for n in range(200)]
    split, now = split_of([*genuine, *fakes]), 95 * DAY
    table, since = TrendTable(), dict[int, int]()
    log, voted = split.log, dict[tuple[int, int], int]()
    for user, item, time_ms in zip(
        log.user.tolist(), log.item.tolist(), log.time_ms.tolist(), strict=True
    ):
        item_id, old = str(log.item_ids[item]), time_ms - since.setdefault(user, time_ms) >= 7 * DAY
        table.add(item_id, time_ms, 1.0, float(old))
        if (user, item) in voted:  # the newest event counts
            before = voted[user, item]
            table.correct(item_id, before, -1.0, -float(before - since[user] >= 7 * DAY))
        voted[user, item] = time_ms
    guarded = apply_limits(*table.both(now), QuarantineLimits())
    assert [table.ids[row] for row in np.flatnonzero(guarded.quarantined)] == ["i3"]
    ((_, trends),) = trends_at(log, np.array([now]))
    first_seen = log.first_seen()
    order = [table.ids.index(item) for item in log.item_ids.tolist()]
    # a 90-day-old event is 1e-650 of an hour's trend: zero in one, one ulp in the other
    np.testing.assert_allclose(trends.values, guarded.values[order], rtol=1e-9, atol=1e-290)
    np.testing.assert_allclose(trends.weights, guarded.weights, rtol=1e-9)
    served = TrendView.of(guarded.values[order], first_seen)
    np.testing.assert_allclose(
        TrendView.of(trends.values, first_seen).log_share, served.log_share, rtol=1e-5
    )


def test_ties_are_broken_at_random_and_differences_never_are() -> None:
    random = np.random.default_rng(0)
    items = np.arange(50, dtype=np.int32)
    scores = np.zeros((1, 50), np.float32)
    scores[0, 7] = 1.0
    lists = np.concatenate([top_n(scores, items, random, 10) for _ in range(2000)])
    assert (lists[:, 0] == 7).all()
    share = np.bincount(lists[:, 1:].ravel(), minlength=50)[np.arange(50) != 7] / 2000
    assert share.min() > 0.8 * 9 / 49
    assert share.max() < 1.2 * 9 / 49


def test_an_item_with_score_minus_infinity_is_not_listed() -> None:
    scores = np.array([[1.0, -np.inf, 2.0]], np.float32)
    shown = top_n(scores, np.arange(3, dtype=np.int32), np.random.default_rng(0), 5)
    assert shown.tolist() == [[2, 0, -1, -1, -1]]


def test_an_aligned_model_gives_the_same_features_under_other_indices() -> None:
    model = a_model(12)
    order = np.random.default_rng(1).permutation(12)
    ids = np.concatenate([["new"], model.item_ids[order]])
    aligned = align(model, ids)
    index = {item: row for row, item in enumerate(ids.tolist())}
    moved = np.array([index[item] for item in model.item_ids.tolist()], np.int32)

    def rows(model: Model, history: IntArray, items: IntArray, view: TrendView) -> FloatArray:
        times = np.arange(len(history), dtype=np.float64)
        weights = np.ones(len(history), np.float32)
        state = UserState(history, weights, times, history, 1e9)
        return features(model, UserVectors.of(model, state), view, items)

    view = a_view(13)
    shares = view.log_share.copy()
    shares[moved] = view.log_share[:12]
    born, score = view.first_seen_ms.copy(), view.trend_score.copy()
    born[moved], score[moved] = view.first_seen_ms[:12], view.trend_score[:12]
    history, items = np.array([3, 5], np.int32), np.arange(12, dtype=np.int32)
    expected = rows(model, history, items, view)
    found = rows(aligned, moved[history], moved[items], TrendView(shares, born, score, view.top))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    unknown = rows(aligned, moved[history], np.array([0], np.int32), view)[0]
    late = rows(model, history, np.array([12], np.int32), view)[0]
    np.testing.assert_array_equal(unknown, late)  # in serving it is a new item
    for name in ("als", "popularity", "arrival_rate", "item_age_days", "age_gap_days"):
        assert np.isnan(unknown[FEATURE_NAMES.index(name)])

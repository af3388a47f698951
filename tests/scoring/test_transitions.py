"""The transition graph: rows, features and candidates, and the counts of live events."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from afterclick import live_transitions, transitions
from afterclick.features import FEATURE_NAMES
from afterclick.live_transitions import (
    ALLOWANCE,
    HALF_LIFE_MS,
    MAX_LAG,
    MAX_LIVE,
    EventArrays,
    LiveTransitions,
    NewAccountLimits,
)
from afterclick.model import Model
from afterclick.retrieval import SOURCES, CandidateLimits, Searches, candidate_items
from afterclick.transitions import TransitionGraph, TransitionRows, scored
from afterclick.user_vectors import UserVectors
from tests.scoring.examples import DAY, NOW_MS, a_model, a_state, a_view, features_of
from training.config import TransitionConfig
from training.event_log import EventLog
from training.graph_replay import GraphReplay
from training.interactions import Interactions
from training.models.transition_graph import transition_graph

Event = tuple[int, int]
"""User and item."""


def with_graph(n: int = 6, **changes: object) -> Model:
    """Item i is followed by i + 2 (score 1) and i + 3 (score ½)."""
    ring = np.arange(n, dtype=np.int32)
    return a_model(
        n,
        transition_items=np.stack([(ring + 2) % n, (ring + 3) % n], axis=1),
        transition_scores=np.tile(np.array([1.0, 0.5], np.float32), (n, 1)),
        **changes,
    )


def column(rows: NDArray[np.float32], name: str) -> list[float]:
    values: list[float] = rows[:, FEATURE_NAMES.index(name)].tolist()
    return values


def ring(events: list[Event], established: bool = False, step_ms: float = 1000.0) -> EventArrays:
    """Contacts, oldest first, the newest at NOW_MS."""
    last: dict[int, int] = {}
    previous = []
    for number, (user, _) in enumerate(events):
        previous.append(last.get(user, -1))
        last[user] = number
    times = np.asarray(NOW_MS - step_ms * np.arange(len(events))[::-1], np.float64)
    ones = np.ones(len(events), np.bool_)
    return EventArrays(np.array(previous), times, ones & established, ones)


def counted(
    live: LiveTransitions, events: list[Event], arrays: EventArrays | None = None
) -> LiveTransitions:
    items = np.array([item for _, item in events], np.int32)
    live.add(
        arrays or ring(events),
        len(events),
        lambda numbers: items[numbers.start : numbers.stop],
        lambda numbers: np.zeros(len(numbers), np.bool_),
    )
    return live


def row(graph: TransitionGraph, item: int) -> dict[int, float]:
    """Neighbour → score."""
    found = graph.rows(np.array([item], np.int32))
    pairs = zip(found.items[0].tolist(), found.scores[0].tolist(), strict=True)
    return {neighbour: score for neighbour, score in pairs if neighbour >= 0}


def test_training_and_serving_share_the_formula() -> None:
    config = TransitionConfig()
    assert config.lag_power == live_transitions.LAG_POWER
    assert config.user_power == live_transitions.USER_POWER
    assert config.source_power == live_transitions.SOURCE_POWER
    assert config.back == live_transitions.BACK
    assert config.decay == transitions.DECAY
    assert config.recent == transitions.RECENT
    assert config.count == live_transitions.WIDTH


def test_features_are_the_scores_of_the_newest_items() -> None:
    rows = features_of(with_graph(), a_state([0, 1]), a_view(), np.arange(2, 6, dtype=np.int32))
    assert column(rows, "transition_last") == [1.0, 0.5, 0.0, 0.0]
    assert column(rows, "transition_score") == pytest.approx([1.0, 0.5 + 0.6, 0.3, 0.0])
    assert column(rows, "transition_share") == pytest.approx([1 / 1.6, 1.1 / 1.6, 0.3 / 1.6, 0.0])


def test_without_a_graph_the_features_are_unknown() -> None:
    rows = features_of(a_model(), a_state([0]), a_view(), np.arange(2, dtype=np.int32))
    assert np.isnan(column(rows, "transition_score")).all()
    assert "transition_items" not in a_model().arrays()
    assert {"transition_items", "transition_scores"} <= set(with_graph().arrays())


def test_what_follows_a_recent_item_is_a_candidate() -> None:
    model = with_graph(10)
    user = UserVectors.of(model, a_state([0]))
    limits = CandidateLimits(trending=0, als=0, tower=0, content=0)
    found = candidate_items(model, user, a_view(10).top, Searches(), limits)
    names = {item: SOURCES[s] for item, s in zip(found.items, found.sources, strict=True)}
    assert names[2] == names[3] == "transitions"
    without = CandidateLimits(trending=0, transitions=0)
    found = candidate_items(model, user, a_view(10).top, Searches(), without)
    assert 2 not in found.items


def test_live_counts_are_those_of_training() -> None:
    """The same events in one go: by training, and one by one."""
    random = np.random.default_rng(5)
    events = [(user, item) for user in range(30) for item in random.permutation(12)[:6].tolist()]
    order = random.permutation(len(events))
    events = [events[i] for i in np.sort(order)]
    live = counted(LiveTransitions(None), events, ring(events, step_ms=1.0))
    rows = Interactions(
        np.array([f"u{u}" for u in range(30)]),
        np.array([f"i{i}" for i in range(12)]),
        np.array([user for user, _ in events], np.int32),
        np.array([item for _, item in events], np.int32),
        np.arange(len(events), dtype=np.int64),
        np.ones(len(events), np.float32),
    )
    # training divides by the length of the whole history, live counts by that of the part before
    items, scores = transition_graph(rows, TransitionConfig(user_power=0.0))
    graph = live.graph(NOW_MS, NewAccountLimits())
    for item in range(12):
        learned = dict(zip(items[item].tolist(), scores[item].tolist(), strict=True))
        learned.pop(-1, None)
        counts = row(graph, item)
        assert counts.keys() == learned.keys()
        ranked = np.corrcoef([counts[i] for i in learned], list(learned.values()))[0, 1]
        assert ranked > 0.98


def test_an_event_adds_to_both_directions_of_a_learned_row() -> None:
    live = counted(LiveTransitions(with_graph()), [(0, 0), (0, 5)])
    graph = live.graph(NOW_MS, NewAccountLimits())
    before, after = row(with_graph().transitions or graph, 0), row(graph, 0)
    assert set(before) == {2, 3}
    assert set(after) == {2, 3, 5}
    assert after[2] < before[2]  # the item was taken once more
    popularity = (6 + 1) / (1 + 1)  # of the two items, with the new events
    back = 0.4 * row(graph, 0)[5] * popularity**0.3
    assert row(graph, 5)[0] == pytest.approx(back, rel=1e-3)
    assert row(graph, 1) == row(with_graph().transitions or graph, 1)


def test_items_newer_than_the_model_have_neighbours() -> None:
    live = counted(LiveTransitions(with_graph()), [(0, 1), (0, 9), (1, 9), (1, 8)])
    graph = live.graph(NOW_MS, NewAccountLimits())
    assert set(row(graph, 9)) == {1, 8}
    assert 9 in row(graph, 1)
    assert row(graph, 7) == {}
    assert row(graph, 1000) == {}


def test_learned_events_do_not_count_but_come_before_others() -> None:
    live, events = LiveTransitions(None), [(0, 0), (0, 1), (0, 2)]
    items = np.array([item for _, item in events], np.int32)
    live.add(
        ring(events), 3, lambda n: items[n.start : n.stop], lambda n: np.array([True, True, False])
    )
    graph = live.graph(NOW_MS, NewAccountLimits())
    assert 1 not in row(graph, 0)
    assert set(row(graph, 2)) == {0, 1}


def test_a_repeated_event_of_a_user_counts_once() -> None:
    once = counted(LiveTransitions(None), [(0, 0), (0, 1)])
    again = counted(LiveTransitions(None), [(0, 0), (0, 1), (0, 1), (0, 0), (0, 1)])
    graphs = [live.graph(NOW_MS, NewAccountLimits()) for live in (once, again)]
    assert row(graphs[0], 0)[1] == pytest.approx(row(graphs[1], 0)[1], rel=1e-6)


def test_events_that_were_taken_back_do_not_count() -> None:
    events = [(0, 0), (0, 1), (0, 2)]
    arrays = ring(events)
    arrays.alive[1] = False
    graph = counted(LiveTransitions(None), events, arrays).graph(NOW_MS, NewAccountLimits())
    assert set(row(graph, 0)) == {2}


def test_counts_halve_with_every_half_life() -> None:
    live = counted(LiveTransitions(None), [(0, 0), (0, 1)])
    now = row(live.graph(NOW_MS, NewAccountLimits()), 0)[1]
    live.refresh()
    later = row(live.graph(NOW_MS + HALF_LIFE_MS, NewAccountLimits()), 0)[1]
    assert later == pytest.approx(now / 2, rel=1e-3)


def test_counts_of_many_years_stay_finite() -> None:
    events = [(user, item) for user in range(50) for item in (0, 1)]
    live = counted(LiveTransitions(None), events, ring(events, step_ms=400 * DAY))
    scores = row(live.graph(NOW_MS, NewAccountLimits()), 0)
    assert np.isfinite(scores[1])
    assert scores[1] > 0.1  # the newest pair


def test_neighbours_and_lags_are_bounded() -> None:
    many = MAX_LIVE + 40
    live = counted(LiveTransitions(None), [(0, item) for item in range(many)])
    graph = live.graph(NOW_MS, NewAccountLimits())
    assert len(live) == many
    assert set(row(graph, 0)) == set(range(1, MAX_LAG + 1))
    users = [(user, item) for user in range(many) for item in (1000, user)]
    live = counted(LiveTransitions(None), users)
    assert len(row(live.graph(NOW_MS, NewAccountLimits()), 1000)) == MAX_LIVE


def test_new_accounts_add_little_to_a_pair() -> None:
    """The control: without limits the pair that they push is first."""
    honest = [(user, item) for user in range(20) for item in (0, 1)]
    pushed = [(100 + user, item) for user in range(200) for item in (0, 2)]
    live = LiveTransitions(None)
    arrays = ring([*honest, *pushed])
    arrays.established[: len(honest)] = True
    counted(live, [*honest, *pushed], arrays)
    unlimited = row(live.graph(NOW_MS, NewAccountLimits()), 0)
    assert unlimited[2] > unlimited[1]
    live.refresh()
    limited = row(live.graph(NOW_MS, NewAccountLimits(0.5)), 0)
    assert limited[1] > 4 * limited[2] > 0
    scale = limited[1] / (20 * 2**-0.15)
    assert limited[2] == pytest.approx(ALLOWANCE * scale, rel=1e-3)


def test_past_graphs_know_nothing_of_their_future() -> None:
    log = EventLog.of(
        Interactions(
            np.array(["u0", "u1"]),
            np.array([f"i{i}" for i in range(6)]),
            np.array([0, 0, 1, 1], np.int32),
            np.array([0, 5, 0, 4], np.int32),
            np.array([10, 20, 30, 40], np.int64),
            np.ones(4, np.float32),
        )
    )
    replay = GraphReplay(with_graph(), log, cut_ms=15)
    assert set(row(replay.at(20), 0)) == {2, 3}
    assert set(row(replay.at(21), 0)) == {2, 3, 5}
    assert set(row(replay.at(41), 0)) == {2, 3, 5, 4}
    assert set(row(replay.at(21), 0)) == {2, 3, 5}
    assert set(row(GraphReplay(with_graph(), log, np.inf).at(41), 0)) == {2, 3}


def test_scores_of_rows_are_summed_by_item() -> None:
    rows = TransitionRows(
        np.array([[3, 1], [1, -1]], np.int32), np.array([[2.0, 1.0], [1.0, 0.0]], np.float32)
    )
    items, scores = scored(rows)
    assert items.tolist() == [1, 3]
    assert scores.tolist() == pytest.approx([1.6, 2.0])

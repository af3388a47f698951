"""The transition graph follows events: new items, shops without a model, new models, erasure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from afterclick.events import Action, Item
from afterclick.live_transitions import MAX_LAG, NewAccountLimits
from afterclick.model import Model
from afterclick.ranking import FormulaRanker
from afterclick.settings import Settings, StreamSettings
from afterclick.state import Effect, StateChange
from serving.state.live_transitions import (
    Contact,
    ContactFeed,
    LearnedEvents,
    ModelTransitions,
    RecentContacts,
    is_contact,
    takes_back,
)
from serving.state.loaded_models import LoadedModel, no_model
from serving.state.snapshot import ServingSnapshot
from serving.state.snapshot_builder import SnapshotSources, SnapshotStore
from serving.tiers import similar_items
from tests.serving import shop
from tests.serving.mini_stream import MiniStream
from tests.serving.offline import Offline
from tests.serving.running import Running, after, ids
from tests.waiting import wait_until

SIGNALS = StreamSettings().signals
NEW = ("phone-0", "phone-1", "phone-2")


def contacts(*histories: str, slots: int = 1024, time_ms: float = 2e12) -> RecentContacts:
    """Users u0, u1, … who took the items of their history, in the partition and order of users."""
    made = RecentContacts(slots)
    for user, history in enumerate(histories):
        for item in history.split():
            offset = made.end
            made.add(Contact(f"u{user}", item, time_ms + offset, True, f"feedback/{user}", offset))
    return made


class Graph:
    """The graph of a model, or of none, over items that get an index as they appear."""

    def __init__(self, learned: LearnedEvents | None = None, model: Model | None = None) -> None:
        self.items: dict[str, int] = {}
        self.of_model = ModelTransitions(model, learned or LearnedEvents(), recount_s=0.0)

    def near(self, made: RecentContacts, item: str) -> dict[str, float]:
        """Neighbour → score."""

        def find_all(item_ids: Any) -> Any:
            return np.array([self.items.setdefault(i, len(self.items)) for i in item_ids])

        graph = self.of_model.update(made, find_all, made.newest_ms, NewAccountLimits())
        rows, names = graph.rows(find_all([item]).astype(np.int32)), list(self.items)
        found = zip(rows.items.ravel().tolist(), rows.scores.ravel().tolist(), strict=True)
        return {names[neighbour]: score for neighbour, score in found if neighbour >= 0}


def change(action: Action = Action.LIKE, **facts: Any) -> StateChange:
    fields: dict[str, Any] = {
        "user_id": "u0", "item_id": "a", "action": action, "event_id": "e", "time_ms": 5,
        "topic": "feedback", "partition": 0, "offset": 1, "effect": Effect.APPLIED,
        "weight": 1.0, "first_user_item": True, "log_ms": 1.0, "read_ms": 1.0, "applied_ms": 1.0,
    }  # fmt: skip
    return StateChange(**(fields | facts))


def test_only_first_positive_events_are_contacts() -> None:
    assert is_contact(change(), SIGNALS)
    assert not is_contact(change(first_user_item=False), SIGNALS)
    assert not is_contact(change(Action.SKIP, weight=-1.0, first_user_item=False), SIGNALS)
    assert is_contact(change(weight=0.0, first_user_item=False, is_copy=True), SIGNALS)
    assert not is_contact(change(Action.SKIP, weight=0.0, is_copy=True), SIGNALS)
    assert takes_back(change(Action.UNDO, weight=0.0))
    assert takes_back(change(Action.REVIEW, weight=-1.0, rating=1.0))
    assert not takes_back(change(Action.SKIP, weight=-1.0))


def test_a_ring_keeps_the_newest_contacts_and_their_users() -> None:
    made = contacts("a b c d", "e", "f g", slots=4)
    assert (len(made), made.users) == (4, 3)
    assert set(Graph().near(made, "f")) == {"g"}
    made.add(Contact("u9", "x", made.newest_ms))
    assert (len(made), made.users) == (4, 3)  # u0 left with the last of their contacts
    for number in range(100):
        made.add(Contact(f"v{number}", "x", made.newest_ms))
    assert (len(made), made.users) == (4, 4)


def test_a_graph_reads_no_contacts_that_the_ring_has_lost() -> None:
    graph, made = Graph(), contacts("a b", slots=4)
    graph.near(made, "a")
    for number in range(10):
        made.add(Contact("u0", f"i{number}", made.newest_ms))
    assert set(graph.near(made, "i9")) == {"i8", "i7", "i6"}
    assert "b" in graph.near(made, "a")  # counted before


@pytest.mark.parametrize("known", [True, False], ids=["known", "control: unknown"])
def test_a_new_model_does_not_count_twice_what_it_has_learned(known: bool) -> None:
    made = contacts("a b", "a c")
    learned = LearnedEvents({"feedback/0": made.end, "feedback/1": 2} if known else {})
    assert set(Graph(learned).near(made, "a")) == ({"c"} if known else {"b", "c"})
    by_time = LearnedEvents(until_ms=made.newest_ms)
    assert set(Graph(by_time).near(made, "a")) == {"c"}
    assert not Graph(LearnedEvents(until_ms=made.newest_ms + 1)).near(made, "a")


def test_a_learned_contact_comes_before_the_next_one() -> None:
    made = contacts("a b c")
    graph = Graph(LearnedEvents({"feedback/0": 1}))
    assert set(graph.near(made, "b")) == {"c"}
    assert set(graph.near(made, "c")) == {"a", "b"}


def test_an_undone_contact_does_not_count() -> None:
    graph, made = Graph(), contacts("a b", "a c")
    assert set(graph.near(made, "a")) == {"b", "c"}
    made.take_back("u0", "b", made.arrays.time_ms[1] - 1)  # the undo of an earlier one
    assert set(graph.near(made, "a")) == {"b", "c"}
    made.take_back("u0", "b", made.newest_ms)
    made.take_back("nobody", "c", made.newest_ms)
    assert set(graph.near(made, "a")) == {"c"}


def test_a_forgotten_user_leaves_neither_contacts_nor_counts() -> None:
    graph, made = Graph(), contacts("a b", "a c")
    assert set(graph.near(made, "a")) == {"b", "c"}
    made.forget({"u0": int(made.newest_ms), "stranger": 1})
    assert "u0" not in {*made._newest, *made._user_ids}
    assert set(graph.near(made, "a")) == {"c"}
    made.add(Contact("u0", "d", made.newest_ms + 1))  # the user returns
    made.add(Contact("u0", "e", made.newest_ms + 2))
    assert set(graph.near(made, "d")) == {"e"}


def test_a_copy_of_a_sessions_event_only_comes_before_others() -> None:
    made = contacts("a b")
    for item in ("a", "b"):
        made.add(Contact("ann", item, made.newest_ms, only_before=True))
    made.add(Contact("ann", "c", made.newest_ms))
    copied = Graph().near(made, "a")
    assert copied["b"] == pytest.approx(Graph().near(contacts("a b"), "a")["b"])
    assert "c" in copied


def test_records_are_read_again_from_the_newest_that_fill_the_ring(settings: Settings) -> None:
    feed = ContactFeed(settings, lambda user_id, _: user_id == "forgotten")
    assert feed.start_offsets({0: 10, 1: feed.slots}) == {0: 0, 1: feed.slots // 2}
    feed.on_change(change(item_id="a"))
    feed.on_change(change(item_id="b", offset=2))
    feed.on_change(change(item_id="b", offset=2, effect=Effect.DUPLICATE))
    feed.on_change(change(user_id="forgotten"))
    assert len(feed) == 2
    feed.on_change(change(Action.UNDO, item_id="b", weight=0.0, first_user_item=False))
    assert feed.taken_back == 1


def loaded(version: str, learned: LearnedEvents | None = None) -> LoadedModel:
    """The shop's model without its neighbours: only live ones show."""
    model = shop.model(version)
    none, zero = np.full((len(model), 1), -1, np.int32), np.zeros((len(model), 1), np.float32)
    alone = replace(
        model,
        neighbour_items=none,
        neighbour_scores=zero,
        co_purchase_items=none,
        co_purchase_scores=zero,
        factors=None,
        content=None,
    )
    return LoadedModel(version, alone, FormulaRanker(), learned=learned or LearnedEvents())


def near(snapshot: ServingSnapshot, item_id: str) -> set[str]:
    """Ids of similar items."""
    item = snapshot.find(item_id)
    assert item is not None
    return {snapshot.ids[i] for i in similar_items(snapshot, item, 10)[0].tolist()}


def test_a_model_swap_keeps_what_the_model_lacks() -> None:
    made = contacts("camera-0 phone-0", "camera-0 phone-1")
    offline = Offline(contacts=made)
    store = SnapshotStore(
        SnapshotSources(offline.feed, offline.catalogue, contacts=made), no_model()
    )
    assert near(store.current, "camera-0") == {"phone-0", "phone-1"}
    store.use(loaded("m1", LearnedEvents({"feedback/0": 9})))
    snapshot = store.build()
    assert near(snapshot, "camera-0") == {"phone-1"}
    assert snapshot.find("phone-1") is not None
    assert near(snapshot, "phone-1") == {"camera-0"}
    assert store.transition_sizes == (2, 2)


def test_a_new_item_is_recommended_to_those_who_took_its_neighbour() -> None:
    liked = {"ann": ["camera-0"], "bob": ["phone-0"], "cat": ["cable-0"]}
    offline = Offline(
        [*shop.catalogue(), Item(item_id="phone-0")],
        liked=liked,
        model=shop.model("m1"),
        contacts=contacts("camera-0 phone-0", "camera-0 phone-0"),
    )
    rows = {row["item_id"]: row for row in offline.items("ann", n=30)}
    assert rows["phone-0"]["source"] == "transitions"
    assert "camera-0" in offline.ids("bob")  # the newest item is unknown to the model
    assert "phone-0" not in offline.ids("cat", n=20)


def test_without_a_model_lists_follow_what_others_took_next() -> None:
    items = [Item(item_id=f"i{n}", title=f"Item {n}") for n in range(40)]
    history = {"ann": ["i7"], "bob": ["i8"], "dan": []}
    made = contacts("i7 i9 i30", "i7 i30", "i1 i2")
    offline = Offline(items, liked=history, contacts=made)
    rows = offline.items("ann")
    assert [row["item_id"] for row in rows[:2]] == ["i30", "i9"]
    assert {row["source"] for row in rows[:2]} == {"transitions"}
    assert set(rows[0]["contributions"]) == {"history", "trend"}
    control = Offline(items, liked=history)
    assert "i30" not in control.ids("ann")
    assert offline.ids("bob") == control.ids("bob")  # no neighbours yet: trends
    assert offline.ids("dan") == control.ids("dan")


def test_more_lags_than_a_user_has_are_not_read() -> None:
    made = contacts(" ".join(f"i{n}" for n in range(MAX_LAG + 5)))
    assert set(Graph().near(made, "i0")) == {f"i{n}" for n in range(1, MAX_LAG + 1)}


def similar(api: Running, item_id: str) -> list[str]:
    """Ids of similar items; none for an item that is not in the snapshot yet."""
    response = api.http.get("/similar-items", params={"item_id": item_id, "n": 5})
    return ids(response.json()) if response.status_code == 200 else []


def test_a_shop_without_a_model_is_personalised_after_its_first_events(
    settings: Settings, api: Running, stream: MiniStream
) -> None:
    """Also by a process that starts later; a model that has learned the events replaces them."""
    for user in ("ann", "bob"):
        for item in NEW[:2]:
            after(api, user, api.feedback(user, item, "purchase"))
    wait_until(lambda: NEW[1] in similar(api, NEW[0]))
    after(api, "cat", api.feedback("cat", NEW[0]))
    wait_until(lambda: api.list_for("cat")["items"][0]["item_id"] == NEW[1])
    body = api.list_for("cat", explain=True)
    assert body["source"] == "personalised"
    assert body["items"][0]["source"] == "transitions"
    assert body["items"][0]["attributions"][0]["item_id"] == NEW[0]
    with Running(api.service.settings) as late:
        late.ready()
        wait_until(lambda: NEW[1] in similar(late, NEW[0]))
        assert late.list_for("cat")["items"][0]["item_id"] == NEW[1]
    size = 'afterclick_live_transitions{what="users"} 3.0'
    wait_until(lambda: size in api.http.get("/metrics").text)

    shop.publish(settings, *shop.write(settings, "m1"))
    wait_until(lambda: api.service.snapshots.current.loaded.version == "m1")
    assert similar(api, NEW[0]) == []
    for item in (NEW[0], NEW[2]):
        after(api, "dan", api.feedback("dan", item, "purchase"))
    wait_until(lambda: similar(api, NEW[0]) == [NEW[2]])

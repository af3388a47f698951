"""Items that are not in the catalogue: recorded, but shown only without one or by setting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import orjson
import pytest
from websockets.sync.client import ClientConnection, connect

from afterclick.events import Item
from afterclick.settings import Settings
from serving.state.item_catalogue import Catalogue
from serving.state.live_trends import TrendState
from serving.state.loaded_models import no_model
from serving.state.snapshot_builder import SnapshotBuilder, SnapshotSources
from tests.serving import shop
from tests.serving.conftest import patient, stock
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running, after, ids
from tests.waiting import PATIENCE_S, wait_until

MADE_UP = "cheap-pills"


class Visited(NamedTuple):
    """A served shop, and the items of the events on its live feed."""

    api: Running
    live: list[str]


@pytest.fixture(params=[False, True], ids=["hidden", "control: allowed"])
def visited(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Visited]:
    """A shop in which bob acted on a made-up item."""
    serving = settings.serving.model_copy(update={"unknown_items": request.param})
    shown = patient(settings.model_copy(update={"serving": serving}))
    with Running(shown) as api, MiniStream(settings):
        api.ready()
        stock(settings, api)
        with connect(f"{api.ws}/ws/live") as live:
            for item_id in (MADE_UP, "camera-3"):
                after(api, "bob", api.feedback("bob", item_id))
            found = _live_items(live, "camera-3")
        table = api.service.feed.table
        assert table.find(MADE_UP) is not None, "the event is recorded"
        wait_until(lambda: api.get("/items/camera-3")["interactions"] == 1)
        yield Visited(api, found)


def _live_items(live: ClientConnection, last: str) -> list[str]:
    found: list[str] = []
    while last not in found:
        message = orjson.loads(live.recv(PATIENCE_S))
        if message["type"] == "event":
            found.append(message["item_id"])
    return found


def places(visited: Visited) -> dict[str, bool]:
    """Whether each place that shows items shows the made-up one."""
    api = visited.api
    lists = {
        "latest": ids(api.get("/latest", n=200)),
        "popular": ids(api.get("/popular", n=200)),
        "trending": ids(api.list_for("a-stranger", n=10, policy="trending")),
        "exploration": ids(api.list_for("a-stranger", n=200, explore=0.5)),
        "live feed": visited.live,
    }
    found = {place: MADE_UP in shown for place, shown in lists.items()}
    found["item"] = api.http.get(f"/items/{MADE_UP}").status_code == 200
    found["badges"] = api.service.snapshots.current.find(MADE_UP) is not None
    n_items = api.figures()["items"]
    return found | {"statistics": n_items > len(shop.catalogue())}


def test_an_unknown_item_is_recorded_and_shown_nowhere(visited: Visited) -> None:
    api, settings = visited.api, visited.api.service.settings
    found = places(visited)
    assert found == dict.fromkeys(found, settings.serving.unknown_items)
    history = api.get("/users/bob/history")["events"]
    assert {event["item_id"] for event in history} == {MADE_UP, "camera-3"}
    shop.publish_items(settings, [Item(item_id=MADE_UP, title="Pills")])
    wait_until(lambda: ids(api.get("/latest", n=1)) == [MADE_UP], what="now it is known")
    assert api.get(f"/items/{MADE_UP}")["interactions"] == 1


def test_without_a_catalogue_every_item_is_shown(api: Running, stream: MiniStream) -> None:
    after(api, "bob", api.feedback("bob", MADE_UP))
    wait_until(lambda: MADE_UP in ids(api.get("/latest", n=10)))
    assert ids(api.get("/popular", n=10)) == [MADE_UP]


def test_an_item_removed_from_the_catalogue_is_hidden(shop_api: Running) -> None:
    catalogue, known = shop_api.service.catalogue, ids(shop_api.get("/popular", n=200))
    assert "camera-3" in known
    catalogue.remove("camera-3")
    wait_until(lambda: "camera-3" not in ids(shop_api.get("/popular", n=200)))
    similar = shop_api.get("/similar-items", item_id="camera-1", n=200)
    assert "camera-3" not in ids(similar)
    assert "camera-3" not in ids(shop_api.list_for("a-stranger", n=200))


@pytest.mark.parametrize("hides", [True, False], ids=["hidden", "control: allowed"])
def test_made_up_items_take_no_room_in_snapshots(hides: bool) -> None:
    catalogue, trends = Catalogue(), TrendState()
    for n in range(10):
        catalogue.put(Item(item_id=f"known-{n}"))
    sources = SnapshotSources(trends, catalogue, hides_unknown=lambda: hides)
    builder = SnapshotBuilder(sources, no_model())
    for n in range(500):
        trends.table.add(f"made-up-{n}", 1.0, 1.0)
        trends.table.add(f"known-{n % 10}", 1.0, 1.0)
        if n % 100 == 0:
            builder.build()
    snapshot = builder.build()
    assert len(snapshot.ids) == (10 if hides else 510)
    assert {snapshot.ids[item] for item in snapshot.newest_first} == set(snapshot.ids)
    for n in range(10):
        index = snapshot.find(f"known-{n}")
        assert index is not None
        assert snapshot.counts[index] == 50

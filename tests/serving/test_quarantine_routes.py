"""Quarantine: an item pushed by new accounts neither trends nor is popular until approved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from afterclick.events import Interaction, InteractionEvent, interaction_event
from afterclick.settings import Settings
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running
from tests.streaming.stream_process import produce
from tests.waiting import wait_until

DAY_S = 86_400
ITEMS, USERS = 24, 72


def a_review(user: str, item: str, days_ago: float) -> InteractionEvent:
    return interaction_event(
        Interaction.model_validate({"user_id": user, "item_id": item, "action": "review"}),
        event_id=f"{user}-{item}",
        time=datetime.fromtimestamp(time.time() - days_ago * DAY_S, UTC),
        source="dataset/test",
    )


def a_month() -> Iterator[InteractionEvent]:
    """Each user reviews six items, the first a month ago and one every five days."""
    for user in range(USERS):
        for n in range(6):
            yield a_review(f"user-{user}", f"item-{(user + 4 * n) % ITEMS}", 28 - 5 * n)


@pytest.fixture
def pushed(settings: Settings, api: Running, stream: MiniStream) -> Running:
    """The API of a shop in which sixty new accounts push `junk`."""
    fakes = [
        a_review(f"fake-{n}", item, 0.01)
        for n in range(60)
        for item in ("junk", f"item-{n % ITEMS}")
    ]
    events = [*a_month(), *fakes]
    produce(settings, events)
    wait_until(lambda: sum(api.service.snapshots.current.counts) == len(events))
    return api


def shown(api: Running, **query: Any) -> list[str]:
    return [item["item_id"] for item in api.get("/popular", n=100, **query)["items"]]


def test_an_item_pushed_by_new_accounts_neither_trends_nor_is_popular(pushed: Running) -> None:
    found = pushed.get("/admin/quarantine")
    assert 0.5 < found["established_share"] < 1.0
    assert found["new_account_weight"]["hour"] < 0.5  # the sixty accounts vote for other items, too
    assert found["new_account_weight"]["quarter"] == 1.0
    assert [item["item_id"] for item in found["quarantined"]] == ["junk"]
    assert all("junk" not in shown(pushed, window=window) for window in ("hour", "day", "month"))
    assert "junk" not in shown(pushed)
    assert "junk" not in [item["item_id"] for item in pushed.list_for("new-user")["items"]]
    assert pushed.get("/items/junk")["interactions"] == 60  # counts include every event
    wait_until(lambda: "afterclick_quarantined_items 1.0" in pushed.http.get("/metrics").text)


def test_an_administrator_approves_an_item_and_withdraws_the_approval(pushed: Running) -> None:
    for lifted in (True, False):
        answer = pushed.http.post("/admin/quarantine", json={"item_id": "junk", "approved": lifted})
        assert answer.status_code == 200, answer.text
        wait_until(lambda: (shown(pushed, window="day")[:1] == ["junk"]) is lifted)  # noqa: B023
        found = pushed.get("/admin/quarantine")
        assert found["approved"] == (["junk"] if lifted else [])
        assert [item["item_id"] for item in found["quarantined"]] == ([] if lifted else ["junk"])


def test_without_the_limit_the_item_is_first(settings: Settings, pushed: Running) -> None:
    """The control."""
    serving = settings.serving.model_copy(update={"quarantine_max_ratio": 0.0})
    with Running(settings.model_copy(update={"serving": serving})) as unbound:
        unbound.ready()
        wait_until(lambda: shown(unbound, window="day")[:1] == ["junk"])
        assert unbound.get("/admin/quarantine")["quarantined"] == []
        assert shown(unbound)[0] == "junk"

"""What a page knows of the visit, without a browser and without an API."""

from __future__ import annotations

import asyncio
from unittest.mock import AsyncMock, Mock

from afterclick.api import Cause, History, HistoryRow, PushedList, RecommendedItem
from ui.api import Api
from ui.shop_session import TOGETHER, Deed, ShopSession


def a_list(*ids: str, cause: Cause | None = None) -> PushedList:
    items = tuple(RecommendedItem(item_id=item_id, score=1.0) for item_id in ids)
    return PushedList(user_id="ann", source="personalised", items=items, cause=cause)


def test_events_that_came_in_one_list_are_not_said_to_wait() -> None:
    session = ShopSession(Api("http://127.0.0.1:9"), "ann")
    for n, position in enumerate(("feedback/0/1", "feedback/0/2", "feedback/0/3", "")):
        session.timeline.appendleft(Deed(f"e{n}", "like", f"i{n}", f"Item {n}", position=position))
    session.receive(a_list("a", "b"))
    session.receive(a_list("b", "a", cause=Cause(event_id="e1", item_id="i1", action="like")))
    assert {deed.event_id: deed.effect for deed in session.timeline} == {
        "e0": TOGETHER,
        "e1": "1 up, 1 down",
        "e2": "",
        "e3": "",
    }
    session.receive(a_list("c", cause=Cause(event_id="e3", item_id="i3", action="like")))
    effects = {deed.event_id: deed.effect for deed in session.timeline}
    assert effects["e2"] == TOGETHER
    assert effects["e1"] == "1 up, 1 down", "what was said of an earlier list stands"


def test_a_list_loaded_again_tells_no_deed_twice() -> None:
    past = tuple(HistoryRow(event_id=f"e{n}", item_id=f"i{n}", action="like") for n in (2, 1))
    history = History(user_id="guest-1", events=past)
    api = Mock(preview=AsyncMock(return_value=a_list("a")), history=AsyncMock(return_value=history))
    session = ShopSession(api, "guest-1")

    async def visit() -> None:
        await session.load()
        session.interests = ("Cables",)
        await session.load()

    asyncio.run(visit())
    assert [deed.event_id for deed in session.timeline] == ["e2", "e1"]

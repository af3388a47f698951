"""ShopSession and the feed of lists, without a browser."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from afterclick.api import Cause, History, HistoryRow, PushedList, Recommendations, RecommendedItem
from afterclick.settings import Settings
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running
from tests.waiting import wait_until
from ui.gateway import ListFeed, ShopClient
from ui.shop_session import INCLUDED, ShopSession, UserAction


def pushed(*ids: str, cause: Cause | None = None) -> PushedList:
    items = tuple(RecommendedItem(item_id=item_id, score=1.0) for item_id in ids)
    return PushedList(user_id="ann", source="personalised", items=items, cause=cause)


class OfflineClient(ShopClient):
    """Returns one list and one history."""

    def __init__(self, *events: HistoryRow) -> None:
        super().__init__("http://127.0.0.1:9")
        self._events = events

    async def preview(
        self, user_id: str, n: int, interests: Sequence[str] = (), policy: str | None = None
    ) -> Recommendations:
        return pushed("a")

    async def history(self, user_id: str, n: int | None = None) -> History:
        return History(user_id=user_id, events=self._events)


def test_events_included_in_a_later_list_do_not_wait() -> None:
    session = ShopSession(OfflineClient(), "ann")
    for n, position in enumerate(("feedback/0/1", "feedback/0/2", "feedback/0/3", "")):
        action = UserAction(f"e{n}", "like", f"i{n}", f"Item {n}", position=position)
        session.timeline.appendleft(action)
    session.receive(pushed("a", "b"))
    session.receive(pushed("b", "a", cause=Cause(event_id="e1", item_id="i1", action="like")))
    assert {action.event_id: action.effect for action in session.timeline} == {
        "e0": INCLUDED,
        "e1": "1 up, 1 down",
        "e2": "",
        "e3": "",
    }
    session.receive(pushed("c", cause=Cause(event_id="e3", item_id="i3", action="like")))
    effects = {action.event_id: action.effect for action in session.timeline}
    assert effects["e2"] == INCLUDED
    assert effects["e1"] == "1 up, 1 down", "the effect of an earlier list is kept"


def test_a_reloaded_list_repeats_no_action() -> None:
    events = (HistoryRow(event_id=f"e{n}", item_id=f"i{n}", action="like") for n in (2, 1))
    session = ShopSession(OfflineClient(*events), "guest-1")

    async def visit() -> None:
        await session.load()
        session.interests = ("Cables",)
        await session.load()

    asyncio.run(visit())
    assert [action.event_id for action in session.timeline] == ["e2", "e1"]


def test_the_feed_reports_the_lists_that_the_browser_has_shown(settings: Settings) -> None:
    def counts() -> tuple[int, int]:
        rows = api.get("/exposure")["rows"]
        return sum(row["sent"] for row in rows), sum(row["lists"] for row in rows)

    async def visit(shown: bool) -> None:
        async with ShopClient(api.url) as client:
            feed = ListFeed(client, "ann", 5, ("Cables",))
            await feed.report_seen("before the connection")
            async for received in feed.lists():
                assert received is not None
                assert received.impression_id is not None
                if shown:
                    await feed.report_seen(received.impression_id)
                return

    with MiniStream(settings), Running(settings) as api:
        api.ready()
        asyncio.run(visit(shown=False))
        asyncio.run(visit(shown=True))
        wait_until(lambda: counts() == (2, 1))

"""What a page knows of the visit, without a browser and without an API."""

from __future__ import annotations

from afterclick.client import Cause, PushedList, RankedItem
from ui.api import Api
from ui.shop_session import TOGETHER, Deed, ShopSession


def a_list(*ids: str, cause: Cause | None = None) -> PushedList:
    items = tuple(RankedItem(item_id=item_id, score=1.0) for item_id in ids)
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

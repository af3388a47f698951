"""One browser's visit to the shop: whose list is shown, what they did, and what each deed changed."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

from afterclick.api import Cause, ItemSummary, PushedList, Recommendations, RecommendedItem
from afterclick.arrays import Json
from afterclick.events import new_id, stable_id
from ui.api import Api
from ui.cards import bar_scale, card, item_url, sureness, title_of
from ui.changes import ListChange, because, compare
from ui.demo_users import demo_user

TIMELINE_LENGTH = 40
GUEST = "guest-"
UNDO = "undo"
TOGETHER = "in one list with what came next"
PAST = 3
"""Items in the past of a toy user."""


@dataclass
class Deed:
    """Something the user did, and what came of it."""

    event_id: str
    action: str
    item_id: str
    title: str
    token: str = ""
    position: str = ""
    effect: str = ""
    answered_ms: float | None = None
    failed: bool = False
    undone: bool = False
    sent: float = field(default_factory=time.perf_counter)
    sent_ms: float = field(default_factory=lambda: time.time() * 1000)

    @property
    def can_be_undone(self) -> bool:
        """Whether it stands, so that an undo would take it back."""
        return not (self.undone or self.failed or self.action == UNDO)

    def row(self) -> Json:
        """The deed as the timeline shows it."""
        return {
            "id": self.event_id,
            "action": self.action,
            "title": self.title,
            "effect": self.effect,
            "position": self.position,
            "ms": None if self.answered_ms is None else round(self.answered_ms),
            "failed": self.failed,
            "undone": self.undone,
            "can_undo": self.can_be_undone,
        }


class ShopSession:
    """The state behind one page. Knows the API, nothing of the browser."""

    def __init__(self, api: Api, user_id: str, list_length: int = 12) -> None:
        self._api = api
        self.list_length = list_length
        self.session_id = new_id()
        self.timeline: deque[Deed] = deque(maxlen=TIMELINE_LENGTH)
        self._known: dict[str, ItemSummary] = {}
        self.become(user_id)

    def become(self, user_id: str) -> None:
        """Forget this visit and start one as somebody else."""
        person = demo_user(user_id)
        self.user_id = user_id
        self.name = person.name if person else user_id
        self.story = person.story if person else ""
        self.interests = person.tastes if person else ()
        self.shown: Recommendations | None = None
        self.change = ListChange({}, (), ())
        self.headline = self.because = ""
        self.answered = ""
        self.stamps: dict[str, float] = {}
        self.timeline.clear()

    @property
    def is_guest(self) -> bool:
        """Somebody new, who may say what they like."""
        return self.user_id.startswith(GUEST)

    async def load(self) -> None:
        """Fetch the list and the history, for the first paint; deeds on the timeline are there once."""
        self._show(await self.preview())
        events = (await self._api.history(self.user_id)).events[:TIMELINE_LENGTH]
        told = {deed.event_id for deed in self.timeline}
        for past in reversed([event for event in events if event.event_id not in told]):
            known = self._known.get(past.item_id)
            title = past.title or (title_of(known) if known else past.item_id)
            self._add(Deed(past.event_id, past.action, past.item_id, title))

    async def preview(self) -> Recommendations:
        """The list as it is now. What the feed pushes a moment later is what counts as shown."""
        return await self._api.preview(self.user_id, self.list_length, self.interests)

    async def give_past(self) -> None:
        """A toy user without history likes the favourite of each of some tastes: so their story is true.

        The event ids depend on user and taste alone: done twice, it counts once.
        """
        if self.timeline or demo_user(self.user_id) is None:
            return
        liked: set[str] = set()
        for taste in self.interests:
            best = (await self._api.popular(PAST, category=taste)).items
            fresh = next((item for item in best if item.item_id not in liked), None)
            if fresh and len(liked) < PAST:
                liked.add(fresh.item_id)
                self.know(fresh)
                await self.act(
                    fresh.item_id, "like", event_id=stable_id("demo", self.user_id, taste)
                )

    async def act(self, item_id: str, action: str, token: str = "", event_id: str = "") -> Deed:
        """Tell the API what the user did. Raises what the API raises, and marks the deed as failed."""
        deed = Deed(event_id or new_id(), action, item_id, self.title(item_id), token)
        self._add(deed)
        shown = self.shown.impression_id if self.shown and not event_id and action != UNDO else None
        try:
            accepted = await self._api.feedback(
                *(self.user_id, item_id, action),
                event_id=deed.event_id,
                session_id=self.session_id,
                impression_id=shown,
            )
            deed.position = accepted.position
        except Exception:
            deed.failed = True
            self._mark_undone()
            raise
        return deed

    async def undo(self, event_id: str, token: str = "") -> Deed | None:
        """Take back a deed and all that was done to the same item. None where it does not stand."""
        deed = next((d for d in self.timeline if d.event_id == event_id and d.can_be_undone), None)
        return await self.act(deed.item_id, UNDO, token) if deed else None

    @property
    def last_deed(self) -> Deed | None:
        """The newest deed that stands."""
        return next((deed for deed in self.timeline if deed.can_be_undone), None)

    def receive(self, pushed: PushedList) -> None:
        """Take over a list that the API pushed, and say what changed and why."""
        received_ms = time.time() * 1000
        before = [item.item_id for item in self.shown.items] if self.shown else []
        self._show(pushed)
        after = self.shown.items if self.shown else ()
        self.change = compare(before, [item.item_id for item in after])
        if pushed.cause:
            self._explain(pushed.cause)
            self.stamps |= {**pushed.cause.stamps_ms, "received": received_ms}

    def title(self, item_id: str) -> str:
        known = self._known.get(item_id)
        return title_of(known) if known else item_id

    def cards(self) -> list[Json]:
        """The list as cards."""
        items = self.shown.items if self.shown else ()
        scale = bar_scale(items)
        return [
            card(
                item,
                n,
                scale,
                self.change.moved.get(item.item_id, 0),
                item.item_id in self.change.entered,
            )
            | {"href": item_url(item.item_id, self.user_id), "sure": self._sureness(item)}
            for n, item in enumerate(items, start=1)
        ]

    def _sureness(self, item: RecommendedItem) -> Json | None:
        return sureness(item, self.shown) if self.shown else None

    def shown_item(self, item_id: str) -> RecommendedItem | None:
        """The item of this id in the list on the screen."""
        items = self.shown.items if self.shown else ()
        return next((item for item in items if item.item_id == item_id), None)

    def know(self, *items: ItemSummary) -> None:
        """Remember items for their titles."""
        self._known |= {item.item_id: item for item in items}

    def _add(self, deed: Deed) -> None:
        self.timeline.appendleft(deed)
        self._mark_undone()

    def _settle_before(self, deed: Deed) -> None:
        """Events of a user take effect in their order: what was waiting came with this one's list."""
        for older in islice(self.timeline, self.timeline.index(deed) + 1, None):
            if older.position and not older.effect:
                older.effect = TOGETHER

    def _mark_undone(self) -> None:
        """Mark what a later undo of the same item has taken back."""
        taken_back: set[str] = set()
        for deed in self.timeline:
            deed.undone = deed.item_id in taken_back
            if deed.action == UNDO and not deed.failed:
                taken_back.add(deed.item_id)

    def _show(self, answer: Recommendations) -> None:
        if not answer.items and self.shown and self.shown.items:
            return  # an API that has just begun knows nothing yet: the last list is better than none
        self.shown = answer
        self.know(*answer.items)

    def _explain(self, cause: Cause) -> None:
        deed = next((d for d in self.timeline if d.event_id == cause.event_id), None)
        title = (
            deed.title
            if deed
            else cause.title or (self.title(cause.item_id) if cause.item_id else None)
        )
        if deed is None and cause.item_id and cause.action:
            deed = Deed(cause.event_id, cause.action, cause.item_id, title or cause.item_id)
            self._add(deed)
        elif deed and deed.answered_ms is None:
            deed.answered_ms = (time.perf_counter() - deed.sent) * 1000
            self.answered = deed.token
            self.stamps = {"handled": deed.sent_ms}
        if deed:
            deed.effect = self.change.summary()
            self._settle_before(deed)
        self.because = because(cause.action, title)
        self.headline = f"Because {self.because}: {self.change.summary()}"

"""The state of one shop page: the user, the list, the user's actions and what each changed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from afterclick.api import (
    Attribution,
    Cause,
    ItemSummary,
    PushedList,
    Recommendations,
    RecommendedItem,
)
from afterclick.arrays import Json
from afterclick.events import new_id, stable_id
from ui.cards import (
    CONTRIBUTION_NAMES,
    SOURCE_NAMES,
    VERBS,
    ListChange,
    bar_scale,
    card,
    compare_lists,
    confidence,
    demo_user,
    describe_cause,
    item_url,
    title_of,
)
from ui.gateway import ShopClient

TIMELINE_LENGTH = 40
GUEST = "guest-"
UNDO = "undo"
INCLUDED = "included in the next list"
"""Effect of an action whose event reached the state together with a later one."""
SEEDED_LIKES = 3


@dataclass
class UserAction:
    """One action of the user and its effect on the list."""

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
        """True if the action counts, so that an undo changes the list."""
        return not (self.undone or self.failed or self.action == UNDO)

    @property
    def verb(self) -> str:
        """The action in the past tense."""
        return VERBS.get(self.action, self.action)

    def timeline_row(self) -> Json:
        """The action as the timeline shows it."""
        return {
            "id": self.event_id,
            "action": self.action,
            "verb": self.verb,
            "title": self.title,
            "effect": self.effect,
            "position": self.position,
            "ms": None if self.answered_ms is None else round(self.answered_ms),
            "failed": self.failed,
            "undone": self.undone,
            "can_undo": self.can_be_undone,
        }


class ShopSession:
    """The state of one page, independent of the browser."""

    def __init__(self, client: ShopClient, user_id: str, list_length: int = 12) -> None:
        self._client = client
        self.list_length = list_length
        self.session_id = new_id()
        self.timeline: deque[UserAction] = deque(maxlen=TIMELINE_LENGTH)
        self._items: dict[str, ItemSummary] = {}
        self.switch_user(user_id)

    def switch_user(self, user_id: str) -> None:
        """Reset the session for another user."""
        user = demo_user(user_id)
        self.user_id = user_id
        self.name = user.name if user else user_id
        self.story = user.story if user else ""
        self.interests = user.tastes if user else ()
        self.shown: Recommendations | None = None
        self.change = ListChange({}, (), ())
        self.headline = self.cause = ""
        self.answered = ""
        self.stamps: dict[str, float] = {}
        self.timeline.clear()

    @property
    def is_guest(self) -> bool:
        """True for a new user, who can pick interests."""
        return self.user_id.startswith(GUEST)

    async def load(self) -> None:
        """Fetch the list and the history; each event is added to the timeline once."""
        self._show(await self.preview())
        events = (await self._client.history(self.user_id)).events[:TIMELINE_LENGTH]
        known = {action.event_id for action in self.timeline}
        for event in reversed([event for event in events if event.event_id not in known]):
            title = event.title or self.title(event.item_id)
            self._add(UserAction(event.event_id, event.action, event.item_id, title))

    async def preview(self) -> Recommendations:
        """The current list. The list that the feed pushes a moment later counts once it is seen."""
        return await self._client.preview(self.user_id, self.list_length, self.interests)

    async def seed_history(self) -> None:
        """Like the most popular item of a few tastes, for a demo user without history.

        Event ids depend on user and taste only, so repeating it has no effect.
        """
        if self.timeline or demo_user(self.user_id) is None:
            return
        liked: set[str] = set()
        for taste in self.interests:
            popular = (await self._client.popular(SEEDED_LIKES, category=taste)).items
            item = next((item for item in popular if item.item_id not in liked), None)
            if item and len(liked) < SEEDED_LIKES:
                liked.add(item.item_id)
                self.remember(item)
                event_id = stable_id("demo", self.user_id, taste)
                await self.act(item.item_id, "like", event_id=event_id)

    async def act(
        self, item_id: str, action: str, token: str = "", event_id: str = ""
    ) -> UserAction:
        """Send an action to the API. On an error, marks the action as failed and raises."""
        done = UserAction(event_id or new_id(), action, item_id, self.title(item_id), token)
        self._add(done)
        from_list = not event_id and action != UNDO
        try:
            accepted = await self._client.feedback(
                self.user_id,
                item_id,
                action,
                event_id=done.event_id,
                session_id=self.session_id,
                impression_id=self.impression_id or None if from_list else None,
            )
            done.position = accepted.position
        except Exception:
            done.failed = True
            self._mark_undone()
            raise
        return done

    async def undo(self, event_id: str, token: str = "") -> UserAction | None:
        """Undo all actions on the item of this event. Returns None if there is nothing to undo."""
        action = next(
            (a for a in self.timeline if a.event_id == event_id and a.can_be_undone), None
        )
        return await self.act(action.item_id, UNDO, token) if action else None

    @property
    def impression_id(self) -> str:
        """Of the current list; "" for a preview."""
        return (self.shown.impression_id if self.shown else None) or ""

    @property
    def last_action(self) -> UserAction | None:
        """The newest action that can be undone."""
        return next((action for action in self.timeline if action.can_be_undone), None)

    def receive(self, pushed: PushedList) -> None:
        """Show a list that the API pushed, and describe the change and its cause."""
        received_ms = time.time() * 1000
        before = [item.item_id for item in self.shown.items] if self.shown else []
        self._show(pushed)
        after = self.shown.items if self.shown else ()
        self.change = compare_lists(before, [item.item_id for item in after])
        if pushed.cause:
            self._explain(pushed.cause)
            self.stamps |= {**pushed.cause.stamps_ms, "received": received_ms}

    def title(self, item_id: str) -> str:
        item = self._items.get(item_id)
        return title_of(item) if item else item_id

    def cards(self) -> list[Json]:
        """The list as cards."""
        if not self.shown:
            return []
        scale = bar_scale(self.shown.items)
        return [self._card(item, rank, scale) for rank, item in enumerate(self.shown.items, 1)]

    def _card(self, item: RecommendedItem, rank: int, scale: float) -> Json:
        moved = self.change.moved.get(item.item_id, 0)
        return card(item, rank, scale, moved, item.item_id in self.change.entered) | {
            "href": item_url(item.item_id, self.user_id),
            "confidence": confidence(item, self.shown) if self.shown else None,
        }

    def shown_item(self, item_id: str) -> RecommendedItem | None:
        """The item with this id in the current list."""
        items = self.shown.items if self.shown else ()
        return next((item for item in items if item.item_id == item_id), None)

    def remember(self, *items: ItemSummary) -> None:
        """Store items for the titles of later actions."""
        self._items |= {item.item_id: item for item in items}

    def _add(self, action: UserAction) -> None:
        self.timeline.appendleft(action)
        self._mark_undone()

    def _mark_older_included(self, action: UserAction) -> None:
        """Events of a user are applied in order: older ones without effect came with this list."""
        for older in islice(self.timeline, self.timeline.index(action) + 1, None):
            if older.position and not older.effect:
                older.effect = INCLUDED

    def _mark_undone(self) -> None:
        """Mark the actions that a later undo of the same item has undone."""
        undone: set[str] = set()
        for action in self.timeline:
            action.undone = action.item_id in undone
            if action.action == UNDO and not action.failed:
                undone.add(action.item_id)

    def _show(self, answer: Recommendations) -> None:
        if not answer.items and self.shown and self.shown.items:
            return  # a restarted API returns empty lists at first: keep the last one
        self.shown = answer
        self.remember(*answer.items)

    def _explain(self, cause: Cause) -> None:
        """Update the headline, and the timeline entry of the action that caused the list."""
        action = next((a for a in self.timeline if a.event_id == cause.event_id), None)
        title = action.title if action else cause.title
        if title is None and cause.item_id:
            title = self.title(cause.item_id)
        if action is None and cause.item_id and cause.action:
            action = UserAction(cause.event_id, cause.action, cause.item_id, title or cause.item_id)
            self._add(action)
        elif action and action.answered_ms is None:
            action.answered_ms = (time.perf_counter() - action.sent) * 1000
            self.answered = action.token
            self.stamps = {"handled": action.sent_ms}
        if action:
            action.effect = self.change.summary()
            self._mark_older_included(action)
        self.cause = describe_cause(cause.action, title)
        self.headline = f"Because {self.cause}: {self.change.summary()}"


EXPLANATIONS = {
    "model": "what users with similar taste chose",
    "history": "similarity to your recent actions",
    "trend": "how often users choose it now",
    "content": "similarity of its words and categories to what you like",
    "base": "the same for every item",
    "popularity": "how often users chose it overall",
    "dislikes": "similarity to what you skipped or rated low",
    "rules": "boosts and limits set by the shop",
    "diversity": "penalty for similarity to items above it",
    "exploration": "bonus to find out whether it suits you",
}
TOLERANCE = 1e-6
MAX_ACTIONS = 6


def receipt(item: RecommendedItem, answer: Recommendations, actions: Iterable[UserAction]) -> Json:
    """The content of the receipt drawer."""
    widest = max((abs(value) for value in item.contributions.values()), default=0.0) or 1.0
    attributions = None
    if item.attributions is not None:
        attributions = [_attribution(event) for event in item.attributions]
    return {
        "title": title_of(item),
        "item_id": item.item_id,
        "score": item.score,
        "reason": item.reason,
        "confidence": confidence(item, answer),
        "attributions": attributions,
        "left_out": False,
        "source": SOURCE_NAMES.get(item.source, item.source),
        "list_source": SOURCE_NAMES.get(answer.source, answer.source),
        "adds_up": abs(sum(item.contributions.values()) - item.score) <= TOLERANCE,
        "contributions": [
            {
                "name": name,
                "label": CONTRIBUTION_NAMES.get(name, name),
                "what": EXPLANATIONS.get(name, ""),
                "value": value,
                "width": round(50 * abs(value) / widest, 2),
            }
            for name, value in item.contributions.items()
        ],
        "model_version": answer.model_version or "none yet: trends and interests only",
        "impression_id": answer.impression_id,
        "as_of": [
            {"partition": name, "offset": offset} for name, offset in sorted(answer.as_of.items())
        ],
        "actions": [
            {"verb": action.verb, "title": action.title, "position": action.position}
            for action in _newest(actions)
        ],
    }


def _attribution(event: Attribution) -> Json:
    """An action of the user and the change of the score without it."""
    verb = VERBS.get(event.action, event.action)
    return {"verb": verb, "title": event.title or event.item_id, "effect": event.effect}


def _newest(actions: Iterable[UserAction]) -> list[UserAction]:
    """The newest actions that count, one per item and kind."""
    newest: dict[tuple[str, str], UserAction] = {}
    for action in actions:
        if action.can_be_undone:
            newest.setdefault((action.action, action.item_id), action)
    return list(newest.values())[:MAX_ACTIONS]

"""The shop: a user's list, which changes after each action and shows the reason."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import structlog
from nicegui import background_tasks, ui

from afterclick.api import ItemSummary, PushedList, Recommendations
from afterclick.errors import AfterclickError
from ui.cards import demo_users, item_url
from ui.gateway import Endpoint, ListFeed, ShopClient, feedback_snippet, list_snippet, watch_snippet
from ui.live_state import LiveState
from ui.shop_session import GUEST, ShopSession, UserAction, receipt
from ui.widgets import (
    Button,
    CardGrid,
    Heading,
    InterestPicker,
    ReceiptDrawer,
    SearchBox,
    SnippetDrawer,
    Timeline,
    UserPicker,
    page_frame,
)

log = structlog.get_logger()

UNAVAILABLE = "The API is unavailable. This is the last list; reconnecting…"
DEGRADED = "Part of the system is unavailable: this list is a fallback."
HINT = "Like or skip an item and watch the list change."
MAX_CATEGORIES = 24
SEARCH_RESULTS = 8
FIRST_LIST_S = 0.8
"""Longest time that the first paint waits for the list."""
FILL_ATTEMPTS = 120
TIMELINE_DELAY_S = 0.15
"""Time for the pushed list to arrive, which updates the timeline as well."""


def register(client: ShopClient, state: LiveState) -> None:
    """Add the shop at `/`."""

    @ui.page("/", title="Afterclick · shop")
    async def shop(user: str = "") -> None:
        browser = ui.context.client
        page = ShopPage(client, user[:128] or demo_users()[0].user_id)
        with page_frame("/", state):
            page.build()
        loading = background_tasks.create(page.load(), name="shop-load")
        await asyncio.wait({loading}, timeout=FIRST_LIST_S)
        browser.on_connect(page.follow)
        browser.on_delete(page.unfollow)


class ShopPage:
    """One open shop page: its session and the elements that show it."""

    def __init__(self, client: ShopClient, user_id: str) -> None:
        self._client = client
        self._session = ShopSession(client, user_id)
        self._feed: asyncio.Task[None] | None = None
        self._lists: ListFeed | None = None
        self._disconnected = False

    def build(self) -> None:
        """Add the elements of the page."""
        with ui.element("div").classes("ac-shop"):
            Heading("The shop", "h1").classes("ac-sr")
            with ui.element("div").classes("ac-shop-main"):
                self._picker = UserPicker(demo_users(), self.switch_user)
                self._interests = InterestPicker(self.set_interests)
                with ui.element("div").classes("ac-tools"):
                    SearchBox(self._search, self.open)
                    Button("Compare", self._compare).props("data-testid=compare")
                    Button("API", self._show_snippets).props("data-testid=api")
                self._notice = ui.label().classes("ac-notice").props("role=status")
                self._grid = CardGrid(self.act, self.open, self.explain, self.undo, HINT)
                self._grid.on_seen(self.report_seen)
            with ui.element("aside").classes("ac-shop-side").props('aria-label="Your actions"'):
                self._timeline = Timeline(self.undo)
        self._receipt = ReceiptDrawer()
        self._snippets = SnippetDrawer()

    async def load(self) -> None:
        """Fetch and show the list; if the API is unavailable, show why."""
        try:
            await self._session.load()
            guest = self._session.is_guest
            categories = (await self._client.categories()).categories if guest else ()
            names = tuple(row.category for row in categories[:MAX_CATEGORIES])
            self._interests.show(names, self._session.interests)
            self._notify("")
        except AfterclickError as error:
            self._notify(str(error))
        self._show()

    def follow(self) -> None:
        """Subscribe to the user's lists."""
        self.unfollow()
        self._feed = background_tasks.create(self._listen(), name="shop-feed")

    def unfollow(self) -> None:
        """Unsubscribe."""
        if self._feed:
            self._feed.cancel()
            self._feed = None

    async def switch_user(self, user_id: str) -> None:
        """Show the shop for another user; "" for a new guest."""
        self.unfollow()
        self._session.switch_user(user_id or GUEST + secrets.token_hex(3))
        ui.navigate.history.replace("/?" + urlencode({"user": self._session.user_id}))
        await self.load()
        self.follow()

    async def set_interests(self, chosen: tuple[str, ...]) -> None:
        """Use other interests for the lists of a guest."""
        self.unfollow()
        self._session.interests = chosen
        await self.load()
        self.follow()

    async def report_seen(self, impression_id: str) -> None:
        """Tell the API that a list is on a screen."""
        if self._lists:
            await self._lists.report_seen(impression_id)

    async def act(self, item_id: str, action: str, token: str) -> None:
        """Send an action; the feed pushes the new list."""
        await self._send(self._session.act(item_id, action, token), token)

    async def undo(self, event_id: str, token: str) -> None:
        """Undo an action; the feed pushes the new list."""
        await self._send(self._session.undo(event_id, token), token)

    async def _send(self, action: Coroutine[Any, Any, UserAction | None], token: str) -> None:
        sending = asyncio.ensure_future(action)
        await asyncio.sleep(0)
        self._show_timeline()
        try:
            await sending
            self._notify(UNAVAILABLE if self._disconnected else "")
        except AfterclickError as error:
            self._notify(f"Not sent: {error}")
            self._grid.show(self._session.cards(), self._session.headline, failed=token)
        asyncio.get_running_loop().call_later(TIMELINE_DELAY_S, self._show_timeline)

    async def open(self, item_id: str) -> None:
        """Send a click and go to the item's page."""
        await self.act(item_id, "click", "")
        ui.navigate.to(item_url(item_id, self._session.user_id))

    async def explain(self, item_id: str) -> None:
        """Show the receipt of an item in the list, then add the attributions."""
        item, answer = self._session.shown_item(item_id), self._session.shown
        if not item or not answer:
            return
        self._receipt.show(receipt(item, answer, self._session.timeline))
        with suppress(AfterclickError):
            explained = await self._client.explain_item(self._session.user_id, item_id)
            attributions = explained.items[0].attributions if explained.items else None
            item = item.model_copy(update={"attributions": attributions})
            self._receipt.replace(receipt(item, answer, self._session.timeline))

    async def _search(self, words: str) -> Sequence[ItemSummary]:
        try:
            items = (await self._client.search(words, SEARCH_RESULTS)).items
        except AfterclickError as error:
            self._notify(str(error))
            return ()
        self._session.remember(*items)
        return items

    def _compare(self) -> None:
        ui.navigate.to("/compare?" + urlencode({"user": self._session.user_id}))

    def _show_snippets(self) -> None:
        session, api = self._session, Endpoint(self._client.url, bool(self._client.headers))
        snippets = [list_snippet(api, session.user_id, session.list_length, session.interests)]
        if session.shown and session.shown.items:
            snippets.append(feedback_snippet(api, session.user_id, session.shown.items[0].item_id))
        self._snippets.show([*snippets, watch_snippet(api, session.user_id)])

    async def _listen(self) -> None:
        session = self._session
        await self._seed_history()
        self._lists = ListFeed(
            self._client, session.user_id, session.list_length, session.interests
        )
        async for pushed in self._lists.lists():
            if pushed is None:
                self._disconnected = True
                self._notify(UNAVAILABLE)
                continue
            self._disconnected = False
            session.receive(pushed)
            self._notify(DEGRADED if pushed.degraded else "")
            self._show()
            if not pushed.items:
                await self._poll_until_filled()

    async def _poll_until_filled(self) -> None:
        """Poll a restarted API: its first lists are empty, and it pushes only after an action."""
        for _ in range(FILL_ATTEMPTS):
            await asyncio.sleep(1.0)
            answer = await self._preview()
            if answer and answer.items:
                self._session.receive(PushedList.model_validate(answer.model_dump()))
                self._show()
                return

    async def _preview(self) -> Recommendations | None:
        try:
            return await self._session.preview()
        except AfterclickError:
            return None

    async def _seed_history(self) -> None:
        try:
            await self._session.seed_history()
        except AfterclickError as error:
            log.info("demo user not seeded", error=str(error))
        self._show_timeline()

    def _notify(self, notice: str) -> None:
        self._notice.set_text(notice)

    def _show(self) -> None:
        session = self._session
        self._picker.show(session.user_id, session.name, session.story)
        last = session.last_action
        undo = (last.event_id, last.title) if last else ("", "")
        self._grid.prepare(session.impression_id, session.stamps, session.cause, *undo)
        self._grid.show(session.cards(), session.headline, session.answered)
        self._show_timeline()

    def _show_timeline(self) -> None:
        self._timeline.show([action.timeline_row() for action in self._session.timeline])

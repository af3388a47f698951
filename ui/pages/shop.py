"""The shop: pick somebody, see their list, do something, watch the list change and why."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import structlog
from nicegui import background_tasks, ui
from nicegui.client import Client

from afterclick.api import ItemSummary, PushedList, Recommendations
from afterclick.errors import AfterclickError
from ui.api import Api
from ui.cards import item_url
from ui.components.card_grid import CardGrid
from ui.components.controls import Button, Heading
from ui.components.drawer import ReceiptDrawer, SnippetDrawer
from ui.components.interest_picker import InterestPicker
from ui.components.search_box import SearchBox
from ui.components.timeline import Timeline
from ui.components.user_picker import UserPicker
from ui.demo_users import demo_users
from ui.feeds import pushed_lists
from ui.live import LiveBoard
from ui.pages.frame import frame
from ui.receipt import receipt
from ui.shop_session import GUEST, Deed, ShopSession
from ui.snippets import Endpoint, feedback_snippet, list_snippet, watch_snippet

log = structlog.get_logger()

AWAY = "The API is away; the list you see is the last one. Trying again…"
DEGRADED = "Part of the system is away: this is the best list that could be had."
HINT = "Like or skip something: the list changes while you look at it."
OFFERED_CATEGORIES = 24
FIRST_LIST_S = 0.8
ASK_AGAIN = 120
FOUND = 8
LIST_FOLLOWS_S = 0.15


def register(api: Api, board: LiveBoard) -> None:
    """Add the shop at `/`."""

    @ui.page("/", title="Afterclick · shop")
    async def shop(client: Client, user: str = "") -> None:
        page = ShopPage(api, user[:128] or demo_users()[0].user_id)
        with frame("/", board):
            page.build()
        # a slow API does not hold up the page: the list follows
        await asyncio.wait(
            {background_tasks.create(page.load(), name="shop-load")}, timeout=FIRST_LIST_S
        )
        client.on_connect(page.follow)
        client.on_delete(page.unfollow)


class ShopPage:
    """One open shop page: its session and the elements that show it."""

    def __init__(self, api: Api, user_id: str) -> None:
        self._api = api
        self._session = ShopSession(api, user_id)
        self._feed: asyncio.Task[None] | None = None
        self._away = False

    def build(self) -> None:
        """Lay out the page."""
        with ui.element("div").classes("ac-shop"):
            Heading("The shop", "h1").classes("ac-sr")
            with ui.element("div").classes("ac-shop-main"):
                self._picker = UserPicker(demo_users(), self.become)
                self._interests = InterestPicker(self.take_interest)
                with ui.element("div").classes("ac-tools"):
                    SearchBox(self._find, self.open)
                    Button("Compare", self._compare).props("data-testid=compare")
                    Button("API", self._show_snippets).props("data-testid=api")
                self._notice = ui.label().classes("ac-notice").props("role=status")
                self._grid = CardGrid(self.act, self.open, self.explain, self.undo, HINT)
            with ui.element("aside").classes("ac-shop-side").props('aria-label="What you did"'):
                self._timeline = Timeline(self.undo)
        self._receipt = ReceiptDrawer()
        self._snippets = SnippetDrawer()

    async def load(self) -> None:
        """Fetch and show the list; where the API is away, say so and wait for the feed."""
        try:
            await self._session.load()
            offer = (await self._api.categories()).categories if self._session.is_guest else ()
            names = tuple(row.category for row in offer[:OFFERED_CATEGORIES])
            self._interests.show(names, self._session.interests)
            self._say("")
        except AfterclickError as error:
            self._say(str(error))
        self._show()

    def follow(self) -> None:
        """Listen for the user's lists."""
        self.unfollow()
        self._feed = background_tasks.create(self._listen(), name="shop-feed")

    def unfollow(self) -> None:
        """Stop listening."""
        if self._feed:
            self._feed.cancel()
            self._feed = None

    async def become(self, user_id: str) -> None:
        """Shop as somebody else."""
        self.unfollow()
        self._session.become(user_id or GUEST + secrets.token_hex(3))
        ui.navigate.history.replace("/?" + urlencode({"user": self._session.user_id}))
        await self.load()
        self.follow()

    async def take_interest(self, chosen: tuple[str, ...]) -> None:
        """Somebody new says what they like."""
        self.unfollow()
        self._session.interests = chosen
        await self.load()
        self.follow()

    async def act(self, item_id: str, action: str, token: str) -> None:
        """Send what the user did; the list follows when the feed pushes it."""
        await self._send(self._session.act(item_id, action, token), token)

    async def undo(self, event_id: str, token: str) -> None:
        """Take back a deed; the list follows as after any other."""
        await self._send(self._session.undo(event_id, token), token)

    async def _send(self, deed: Coroutine[Any, Any, Deed | None], token: str) -> None:
        sent = asyncio.ensure_future(deed)
        await asyncio.sleep(0)
        self._show_timeline()
        try:
            await sent
            self._say(AWAY if self._away else "")
        except AfterclickError as error:
            self._say(f"That did not arrive: {error}")
            self._grid.show(self._session.cards(), self._session.headline, failed=token)
        # the list that follows shows the timeline, too: one change of the page, not two
        asyncio.get_running_loop().call_later(LIST_FOLLOWS_S, self._show_timeline)

    async def open(self, item_id: str) -> None:
        """Go to an item's page; that is a click on it, too."""
        await self.act(item_id, "click", "")
        ui.navigate.to(item_url(item_id, self._session.user_id))

    async def explain(self, item_id: str) -> None:
        """Show the receipt of an item in the list; which deeds moved it, follows."""
        item, answer = self._session.shown_item(item_id), self._session.shown
        if not item or not answer:
            return
        self._receipt.show(receipt(item, answer, self._session.timeline))
        with suppress(AfterclickError):
            alone = await self._api.in_list(self._session.user_id, item_id)
            causes = alone.items[0].attributions if alone.items else None
            explained = item.model_copy(update={"attributions": causes})
            self._receipt.replace(receipt(explained, answer, self._session.timeline))

    async def _find(self, words: str) -> Sequence[ItemSummary]:
        try:
            found = (await self._api.search(words, FOUND)).items
        except AfterclickError as error:
            self._say(str(error))
            return ()
        self._session.know(*found)
        return found

    def _compare(self) -> None:
        ui.navigate.to("/compare?" + urlencode({"user": self._session.user_id}))

    def _show_snippets(self) -> None:
        session, api = self._session, Endpoint(self._api.url, bool(self._api.headers))
        snippets = [list_snippet(api, session.user_id, session.list_length, session.interests)]
        if session.shown and session.shown.items:
            snippets.append(feedback_snippet(api, session.user_id, session.shown.items[0].item_id))
        self._snippets.show([*snippets, watch_snippet(api, session.user_id)])

    async def _listen(self) -> None:
        session = self._session
        await self._give_past()
        async for pushed in pushed_lists(
            self._api, session.user_id, session.list_length, session.interests
        ):
            if pushed is None:
                if (
                    not self._away
                ):  # said once: what is said after it, as that a deed did not arrive, stays
                    self._say(AWAY)
                self._away = True
                continue
            self._away = False
            session.receive(pushed)
            self._say(DEGRADED if pushed.degraded else "")
            self._show()
            if not pushed.items:
                await self._ask_until_filled()

    async def _ask_until_filled(self) -> None:
        """An API that has just begun answers empty lists, and pushes only when the user does something."""
        for _ in range(ASK_AGAIN):
            await asyncio.sleep(1.0)
            answer = await self._ask()
            if answer and answer.items:
                self._session.receive(PushedList.model_validate(answer.model_dump()))
                self._show()
                return

    async def _ask(self) -> Recommendations | None:
        try:
            return await self._session.preview()
        except AfterclickError:
            return None

    async def _give_past(self) -> None:
        try:
            await self._session.give_past()
        except AfterclickError as error:
            log.info("no past for a toy user", error=str(error))
        self._show_timeline()

    def _say(self, notice: str) -> None:
        self._notice.set_text(notice)

    def _show(self) -> None:
        session = self._session
        self._picker.show(session.user_id, session.name, session.story)
        last = session.last_deed
        self._grid.offer_undo(last.event_id if last else "", last.title if last else "")
        cards = session.cards()
        self._grid.stamp(session.stamps)
        self._grid.because(session.because)
        self._grid.show(cards, session.headline, session.answered)
        self._show_timeline()

    def _show_timeline(self) -> None:
        self._timeline.show([row.row() for row in self._session.timeline])

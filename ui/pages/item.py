"""The page of one item: what it is, how it trends, why it is (not) in the list, and what is like it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import structlog
from nicegui import ui

from afterclick.api import ItemDetails, ListedItem, RecommendedItem
from afterclick.errors import AfterclickError, BadInput
from ui.api import Api
from ui.artwork import artwork
from ui.cards import BADGE_NAMES, card, item_url, title_of
from ui.changes import VERBS
from ui.components.card_grid import CardGrid
from ui.components.controls import Age, Button, Heading, panel
from ui.components.drawer import ReceiptDrawer
from ui.components.trend_curve import TrendCurve, curve
from ui.demo_users import demo_users
from ui.live import LiveBoard
from ui.pages.frame import frame
from ui.receipt import receipt
from ui.shop_session import ShopSession

log = structlog.get_logger()

SIMILAR = 6
SLOWEST_S = 12.0
ASK_S = 2.0
ACTIONS = {"like": "Like", "basket": "Add to basket", "purchase": "Buy", "skip": "Not for me"}
KINDS = {
    "bought": (
        "Who chose this, also chose",
        "Nothing yet: that comes with the first model that knows it.",
    ),
    "content": (
        "Similar items",
        "Nothing yet: that takes a model, and a title or categories of this item to compare.",
    ),
}
"""Heading, and what is said where there is none, of the two kinds of items alike."""


def register(api: Api, board: LiveBoard) -> None:
    """Add the page at `/item?id=…`: item ids may hold any character, also a slash."""

    @ui.page("/item", title="Afterclick · item", response_timeout=SLOWEST_S)
    async def item(id: str = "", user: str = "") -> None:
        page = ItemPage(api, id[:128], user[:128] or demo_users()[0].user_id)
        with frame("/item", board):
            await page.build()
        ui.context.client.on_connect(page.viewed)


class ItemPage:
    """One open item page."""

    def __init__(self, api: Api, item_id: str, user_id: str) -> None:
        self._api, self._item_id = api, item_id
        self._session = ShopSession(api, user_id)
        self._known = self._viewed = False

    async def build(self) -> None:
        """Fetch and lay out; an unknown item or a silent API is said in words."""
        shop = "/?" + urlencode({"user": self._session.user_id})
        try:
            item = await self._api.item(self._item_id)
            alike = await asyncio.gather(
                *(self._api.similar(self._item_id, SIMILAR, kind) for kind in KINDS)
            )
        except BadInput:
            Heading(f"There is no item {self._item_id}", "h1")
            ui.link("To the shop", shop)
            return
        except AfterclickError as error:
            Heading("The API is away", "h1")
            ui.label(str(error)).classes("ac-notice")
            ui.link("To the shop", shop)
            return
        ui.link(f"Back to the list of {self._session.name}", shop).classes("ac-back")
        self._session.know(item, *(other for kind in alike for other in kind.items))
        self._known = True
        self._hero(item)
        for kind, others in zip(KINDS, alike, strict=True):
            self._alike(kind, others.items)
        self._receipt = ReceiptDrawer()

    async def viewed(self) -> None:
        """The browser shows the item: that is a view, once per page. From now on its counts are followed."""
        if self._known and not self._viewed:
            self._viewed = True
            with self._trends:
                ui.timer(ASK_S, self._follow)
            try:
                await self._session.act(self._item_id, "view")
            except AfterclickError as error:
                log.info("a view did not arrive", item_id=self._item_id, error=str(error))

    def _hero(self, item: ItemDetails) -> None:
        with ui.element("article").classes("ac-item"):
            with ui.element("div").classes("ac-item-art"):
                ui.html(artwork(item.item_id, item.categories), sanitize=False)
            with ui.element("div").classes("ac-item-body"):
                ui.label(" / ".join(item.categories) or "Uncategorised").classes("ac-category")
                Heading(title_of(item), "h1")
                facts = [
                    item.item_id if item.title else None,
                    item.brand,
                    f"${item.price:,.2f}" if item.price is not None else None,
                ]
                ui.label(" · ".join(fact for fact in facts if fact)).classes("ac-facts-line")
                self._badges = ui.label().classes("ac-item-badges")
                with ui.element("div").classes("ac-item-actions"):
                    for action, name in ACTIONS.items():
                        self._button(action, name)
                    Button("Why?", self._explain).props("data-action=why")
                self._done = ui.label().props("role=status").classes("ac-effect")
                self._trend()
        self._show(item)

    def _trend(self) -> None:
        self._trends = panel("How it trends")
        with self._trends:
            self._age = Age()
            self._counted = ui.label()
            self._curve = TrendCurve()

    def _show(self, item: ItemDetails) -> None:
        in_model = "known to the model" if item.in_model else "not in the model yet"
        self._badges.set_text(" · ".join(BADGE_NAMES.get(badge, badge) for badge in item.badges))
        self._counted.set_text(
            f"{item.interactions:,} interactions counted, each once; {in_model}."
        )
        self._curve.show(curve(item.trends))
        self._age.heard()

    async def _follow(self) -> None:
        with suppress(AfterclickError):  # the panel says how old it is
            self._show(await self._api.item(self._item_id))

    def _button(self, action: str, name: str) -> None:
        async def click() -> None:
            self._done.set_text(await self._act(self._item_id, action))

        Button(name, click).props(f"data-action={action}")

    async def _act(self, item_id: str, action: str) -> str:
        """Send what the user did; says what came of it."""
        try:
            deed = await self._session.act(item_id, action)
        except AfterclickError as error:
            return f"That did not arrive: {error}"
        return f"You {VERBS[action]} {deed.title}: in the log at {deed.position}"

    async def _explain(self) -> None:
        """Show what the item's score in this user's list would be made of."""
        session = self._session
        try:
            await session.load()
            answer = await self._api.in_list(session.user_id, self._item_id)
        except AfterclickError as error:
            self._done.set_text(f"No receipt: {error}")
            return
        had = any(deed.item_id == self._item_id and deed.can_be_undone for deed in session.timeline)
        if answer.items:
            shown = receipt(answer.items[0], answer, session.timeline)
            self._receipt.show(shown | {"left_out": had, "sure": None})
        else:
            self._done.set_text("No list has it: a rule of the shop leaves it out.")

    def _alike(self, kind: str, others: tuple[ListedItem, ...]) -> None:
        heading, none = KINDS[kind]
        Heading(heading)
        if not others:
            ui.label(none).classes("ac-empty")
            return
        with ui.element("div").props(f"data-alike={kind}"):
            self._grid([self._card(other, n) for n, other in enumerate(others, start=1)])

    def _grid(self, cards: list[dict[str, Any]]) -> None:
        async def act(item_id: str, action: str, token: str) -> None:
            grid.show(cards, await self._act(item_id, action), failed=token)

        grid = CardGrid(
            act, lambda item_id: ui.navigate.to(item_url(item_id, self._session.user_id))
        )
        grid.show(cards)

    def _card(self, other: ListedItem, place: int) -> dict[str, Any]:
        shown = card(RecommendedItem(**other.model_dump()), place, 1.0, 0, False)
        return shown | {"href": item_url(other.item_id, self._session.user_id)}

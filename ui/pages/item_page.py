"""The page of one item: its facts and trend, the receipt of its score, and similar items."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlencode

import structlog
from nicegui import ui

from afterclick.api import ItemDetails, ListedItem, RecommendedItem
from afterclick.arrays import Json
from afterclick.errors import AfterclickError, BadInput
from ui.cards import (
    BADGE_NAMES,
    artwork,
    card,
    demo_users,
    item_url,
    ratings_text,
    title_of,
)
from ui.gateway import ShopClient
from ui.live_state import LiveState
from ui.shop_session import ShopSession, receipt
from ui.widgets import Age, Button, CardGrid, Heading, ReceiptDrawer, TrendCurve, page_frame, panel

log = structlog.get_logger()

SIMILAR_ITEMS = 6
RESPONSE_TIMEOUT_S = 12.0
POLL_S = 2.0
ACTIONS = {"like": "Like", "basket": "Add to basket", "purchase": "Buy", "skip": "Not for me"}
SIMILARITIES = {
    "bought": (
        "Also chosen by users who chose this",
        "None yet: available once a model contains this item.",
    ),
    "content": (
        "Similar items",
        "None yet: available once there is a model, for items with a title or categories.",
    ),
}
"""Heading and empty state of each kind of similarity."""


def register(client: ShopClient, state: LiveState) -> None:
    """Add the page at `/item?id=…`."""

    @ui.page("/item", title="Afterclick · item", response_timeout=RESPONSE_TIMEOUT_S)
    async def item(id: str = "", user: str = "") -> None:
        page = ItemPage(client, id[:128], user[:128] or demo_users()[0].user_id)
        with page_frame("/item", state):
            await page.build()
        ui.context.client.on_connect(page.on_view)


class ItemPage:
    """One open item page."""

    def __init__(self, client: ShopClient, item_id: str, user_id: str) -> None:
        self._client, self._item_id = client, item_id
        self._session = ShopSession(client, user_id)
        self._loaded = self._viewed = False

    async def build(self) -> None:
        """Fetch and show the item, or the reason why there is none."""
        shop = "/?" + urlencode({"user": self._session.user_id})
        try:
            item = await self._client.item(self._item_id)
            similar = await asyncio.gather(
                *(self._client.similar(self._item_id, SIMILAR_ITEMS, kind) for kind in SIMILARITIES)
            )
        except BadInput:
            Heading(f"There is no item {self._item_id}", "h1")
            ui.link("To the shop", shop)
            return
        except AfterclickError as error:
            Heading("The API is unavailable", "h1")
            ui.label(str(error)).classes("ac-notice")
            ui.link("To the shop", shop)
            return
        ui.link(f"Back to the list of {self._session.name}", shop).classes("ac-back")
        self._session.remember(item, *(other for answer in similar for other in answer.items))
        self._loaded = True
        self._build_item(item)
        for kind, answer in zip(SIMILARITIES, similar, strict=True):
            self._build_similar(kind, answer.items)
        self._receipt = ReceiptDrawer()

    async def on_view(self) -> None:
        """Send the view, once per page, and start to poll the item's counts."""
        if self._loaded and not self._viewed:
            self._viewed = True
            with self._trend_panel:
                ui.timer(POLL_S, self._refresh)
            try:
                await self._session.act(self._item_id, "view")
            except AfterclickError as error:
                log.info("view not sent", item_id=self._item_id, error=str(error))

    def _build_item(self, item: ItemDetails) -> None:
        with ui.element("article").classes("ac-item"):
            with ui.element("div").classes("ac-item-art"):
                ui.html(artwork(item.item_id, item.categories), sanitize=False)
            with ui.element("div").classes("ac-item-body"):
                ui.label(" / ".join(item.categories) or "Uncategorised").classes("ac-category")
                Heading(title_of(item), "h1")
                ui.label(_facts(item)).classes("ac-facts-line")
                self._ratings = ui.label().classes("ac-facts-line").props("data-testid=ratings")
                self._badges = ui.label().classes("ac-item-badges")
                with ui.element("div").classes("ac-item-actions"):
                    for action, name in ACTIONS.items():
                        self._action_button(action, name)
                    Button("Why?", self._explain).props("data-action=why")
                self._status = ui.label().props("role=status").classes("ac-effect")
                self._build_trend()
        self._show(item)

    def _build_trend(self) -> None:
        self._trend_panel = panel("Trend")
        with self._trend_panel:
            self._age = Age()
            self._counts = ui.label()
            self._curve = TrendCurve()

    def _show(self, item: ItemDetails) -> None:
        in_model = "in the model" if item.in_model else "not in the model yet"
        self._badges.set_text(" · ".join(BADGE_NAMES.get(badge, badge) for badge in item.badges))
        ratings = ratings_text(item.ratings)
        self._ratings.set_text(f"★ {ratings}" if ratings else "")
        counts = f"{item.interactions:,} interactions counted, {item.positives:,} of them positive"
        self._counts.set_text(f"{counts}; {in_model}.")
        self._curve.show(item.trends)
        self._age.refresh()

    async def _refresh(self) -> None:
        with suppress(AfterclickError):  # the age of the panel shows the failure
            self._show(await self._client.item(self._item_id))

    def _action_button(self, action: str, name: str) -> None:
        async def click() -> None:
            self._status.set_text(await self._act(self._item_id, action))

        Button(name, click).props(f"data-action={action}")

    async def _act(self, item_id: str, action: str) -> str:
        """Send an action and return the result as text."""
        try:
            done = await self._session.act(item_id, action)
        except AfterclickError as error:
            return f"Not sent: {error}"
        return f"You {done.verb} {done.title}: in the log at {done.position}"

    async def _explain(self) -> None:
        """Show the receipt of the score that the item has, or would have, in the user's list."""
        session = self._session
        try:
            await session.load()
            answer = await self._client.explain_item(session.user_id, self._item_id)
        except AfterclickError as error:
            self._status.set_text(f"No receipt: {error}")
            return
        if not answer.items:
            self._status.set_text("A rule of the shop excludes this item from all lists.")
            return
        seen = any(a.item_id == self._item_id and a.can_be_undone for a in session.timeline)
        shown = receipt(answer.items[0], answer, session.timeline)
        self._receipt.show(shown | {"left_out": seen, "confidence": None})

    def _build_similar(self, kind: str, items: tuple[ListedItem, ...]) -> None:
        heading, empty = SIMILARITIES[kind]
        Heading(heading)
        if not items:
            ui.label(empty).classes("ac-empty")
            return
        with ui.element("div").props(f"data-similar={kind}"):
            self._grid([self._card(item, rank) for rank, item in enumerate(items, start=1)])

    def _grid(self, cards: list[Json]) -> None:
        async def act(item_id: str, action: str, token: str) -> None:
            grid.show(cards, await self._act(item_id, action), failed=token)

        def open_item(item_id: str) -> None:
            ui.navigate.to(item_url(item_id, self._session.user_id))

        grid = CardGrid(act, open_item)
        grid.show(cards)

    def _card(self, item: ListedItem, rank: int) -> Json:
        shown = card(RecommendedItem(**item.model_dump()), rank, 1.0, 0, False)
        return shown | {"href": item_url(item.item_id, self._session.user_id)}


def _facts(item: ItemDetails) -> str:
    """Id, brand and price, as far as known."""
    price = None if item.price is None else f"${item.price:,.2f}"
    facts = (item.item_id if item.title else None, item.brand, price)
    return " · ".join(fact for fact in facts if fact)

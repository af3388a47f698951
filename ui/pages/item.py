"""The page of one item: what it is, how it trends, what is like it."""

from __future__ import annotations

import structlog
from nicegui import ui

from afterclick.errors import AfterclickError, BadInput
from ui.api import Api
from ui.api_types import ItemDetails, RankedItem
from ui.artwork import artwork
from ui.cards import card, item_url, title_of
from ui.components.card_grid import CardGrid
from ui.components.controls import Button, Heading, panel
from ui.components.trend_curve import TrendCurve, curve
from ui.demo_users import demo_users
from ui.live import LiveBoard
from ui.pages.frame import frame
from ui.shop_session import ShopSession

log = structlog.get_logger()

SIMILAR = 8
SLOWEST_S = 12.0
ACTIONS = {"like": "Like", "basket": "Add to basket", "purchase": "Buy", "skip": "Not for me"}


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
        self._session = ShopSession(api, user_id, list_length=SIMILAR)
        self._known = self._viewed = False

    async def build(self) -> None:
        """Fetch and lay out; an unknown item or a silent API is said in words."""
        try:
            item = await self._api.item(self._item_id)
            similar = await self._api.similar(self._item_id, SIMILAR)
        except BadInput:
            Heading(f"There is no item {self._item_id}", "h1")
            ui.html('<p><a href="/">To the shop</a></p>', sanitize=False)
            return
        except AfterclickError as error:
            Heading("The API is away", "h1")
            ui.label(str(error))
            return
        self._session.know(item, *similar)
        self._known = True
        self._hero(item)
        self._similar(item, similar)

    async def viewed(self) -> None:
        """The browser shows the item: that is a view, once per page."""
        if self._known and not self._viewed:
            self._viewed = True
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
                facts = [item.item_id, item.brand, f"${item.price:,.2f}" if item.price is not None else None]
                ui.label(" · ".join(fact for fact in facts if fact)).classes("ac-facts-line")
                with ui.element("div").classes("ac-item-actions"):
                    for action, name in ACTIONS.items():
                        self._button(action, name)
                self._done = ui.label().props("role=status").classes("ac-effect")
        with panel("How it trends"):
            in_model = "known to the model" if item.in_model else "not in the model yet"
            ui.label(f"{item.interactions:,} interactions counted, each once; {in_model}.")
            TrendCurve(curve(item.trends))

    def _button(self, action: str, name: str) -> None:
        async def click() -> None:
            try:
                deed = await self._session.act(self._item_id, action)
                self._done.set_text(f"{name}: in the log at {deed.position}")
            except AfterclickError as error:
                self._done.set_text(f"That did not arrive: {error}")

        Button(name, click).props(f"data-action={action}")

    def _similar(self, item: ItemDetails, similar: tuple[RankedItem, ...]) -> None:
        Heading("Similar items")
        if not similar:
            ui.label("Nothing yet: similar items come with the first model.").classes("ac-empty")
            return

        async def act(item_id: str, action: str, token: str) -> None:
            await self._session.act(item_id, action)
            grid.show(cards, failed=token)

        grid = CardGrid(act, lambda item_id: ui.navigate.to(item_url(item_id, self._session.user_id)))
        cards = [
            card(other, n, 1.0, 0, False) | {"href": item_url(other.item_id, self._session.user_id)}
            for n, other in enumerate(similar, start=1)
        ]
        grid.show(cards)

"""The grid of cards. Cards keep their identity, so a changed list moves them instead of redrawing."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from nicegui.element import Element
from nicegui.events import GenericEventArguments

from afterclick.arrays import Json

Act = Callable[[str, str, str], Awaitable[None]]
Undo = Callable[[str, str], Awaitable[None]]


class CardGrid(Element, component="card_grid.js"):
    """Shows `cards`.

    Calls `on_act(item_id, action, token)` for a button, `on_open(item_id)` for a card, `on_why(item_id)` for
    its score, `on_undo(event_id, token)` for the last deed, once that is offered. `hint` stands where nothing
    has been said yet.
    """

    def __init__(
        self,
        on_act: Act,
        on_open: Callable[[str], Any],
        on_why: Callable[[str], Any] | None = None,
        on_undo: Undo | None = None,
        hint: str = "",
    ) -> None:
        super().__init__()
        self._props["hint"] = hint
        self._props["cards"] = []
        self._props["undo"] = ""
        self._props["stamps"] = {}

        async def act(event: GenericEventArguments) -> None:
            await on_act(event.args["item_id"], event.args["action"], event.args["token"])

        def open_item(event: GenericEventArguments) -> Any:
            return on_open(event.args["item_id"])

        self.on("act", act)

        def why(event: GenericEventArguments) -> Any:
            return on_why(event.args["item_id"]) if on_why else None

        self.on("open", open_item)
        self.on("why", why)

        async def undo(event: GenericEventArguments) -> None:
            if on_undo:
                await on_undo(event.args["event_id"], event.args["token"])

        self.on("undo", undo)

    def stamp(self, stamps_ms: dict[str, float]) -> None:
        """With the next list, say when its event passed each stage: the browser measures against it."""
        self._props["stamps"] = {**stamps_ms, "shown": time.time() * 1000}

    def because(self, cause: str) -> None:
        """With the next list, say what moved its cards, as in `you liked Canon EOS Rebel`."""
        self._props["cause"] = cause

    def show(
        self, cards: list[Json], headline: str = "", answered: str = "", failed: str = ""
    ) -> None:
        """Show a list. `answered`: token of the deed that caused it; `failed`: of one that did not arrive."""
        self._props["cards"] = cards
        self._props["headline"] = headline
        self._props["answered"] = answered
        self._props["failed"] = failed
        self.update()

    def offer_undo(self, event_id: str, title: str) -> None:
        """With the next list, offer to take back the deed of this event; none where it is empty."""
        self._props["undo"] = event_id
        self._props["undoTitle"] = title

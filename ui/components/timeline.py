"""The timeline of a user's deeds and what each did to the list."""

from __future__ import annotations

from nicegui.element import Element
from nicegui.events import GenericEventArguments

from afterclick.arrays import Json
from ui.components.card_grid import Undo


class Timeline(Element, component="timeline.js"):
    """Shows rows of `shop_session.Deed.row`, newest first; calls `on_undo(event_id, "")`."""

    def __init__(self, on_undo: Undo) -> None:
        super().__init__()
        self._props["rows"] = []

        async def undo(event: GenericEventArguments) -> None:
            await on_undo(event.args["event_id"], "")

        self.on("undo", undo)

    def show(self, rows: list[Json]) -> None:
        if rows != self._props["rows"]:
            self._props["rows"] = rows
            self.update()

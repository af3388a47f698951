"""The timeline of a user's deeds and what each did to the list."""

from __future__ import annotations

from nicegui.element import Element

from ui.api_types import JsonObject


class Timeline(Element, component="timeline.js"):
    """Shows rows of `shop_session.Deed.row`, newest first."""

    def __init__(self) -> None:
        super().__init__()
        self._props["rows"] = []

    def show(self, rows: list[JsonObject]) -> None:
        self._props["rows"] = rows
        self.update()

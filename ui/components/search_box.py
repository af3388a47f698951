"""Search in the catalogue, with the results under the field."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from nicegui.element import Element
from nicegui.events import GenericEventArguments

from afterclick.api import ItemSummary
from ui.artwork import category_hue
from ui.cards import title_of


class SearchBox(Element, component="search_box.js"):
    """Asks `find(words)` as one types; calls `on_open(item_id)` for a result."""

    def __init__(
        self, find: Callable[[str], Awaitable[Sequence[ItemSummary]]], on_open: Callable[[str], Any]
    ) -> None:
        super().__init__()
        self._props["results"] = []
        self._props["answered"] = ""

        async def search(event: GenericEventArguments) -> None:
            words = event.args["words"].strip()
            found = await find(words) if words else ()
            self._props["results"] = [_row(item) for item in found]
            self._props["answered"] = words
            self.update()

        def open_item(event: GenericEventArguments) -> Any:
            return on_open(event.args["item_id"])

        self.on("search", search, throttle=0.12)
        self.on("open", open_item)


def _row(item: ItemSummary) -> dict[str, Any]:
    return {
        "id": item.item_id,
        "title": title_of(item),
        "category": " / ".join(item.categories[-2:]),
        "hue": category_hue(item.categories),
    }

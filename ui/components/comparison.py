"""Rankings side by side."""

from __future__ import annotations

from nicegui.element import Element

from afterclick.arrays import Json


class Comparison(Element, component="comparison.js"):
    """Shows columns {key, name, what, instead, shared, items}."""

    def __init__(self, columns: list[Json]) -> None:
        super().__init__()
        self._props["columns"] = columns

"""Big figures, each with its age; the browser ages them, so a silent server shows."""

from __future__ import annotations

from nicegui.element import Element

from afterclick.arrays import Json


class Tiles(Element, component="tiles.js"):
    """Shows tiles {name, value, unit, title}; `beat` changes whenever the figures are new."""

    def __init__(self) -> None:
        super().__init__()
        self._props["tiles"] = []
        self._props["beat"] = 0

    def show(self, tiles: list[Json], beat: int) -> None:
        self._props["tiles"] = tiles
        self._props["beat"] = beat
        self.update()

"""The strip of live figures at the top of every page."""

from __future__ import annotations

from nicegui.element import Element

from afterclick.arrays import Json


class LiveStrip(Element, component="live_strip.js"):
    """Shows tiles {name, value, unit, title}; the browser itself ages them and says when they are stale."""

    def __init__(self) -> None:
        super().__init__()
        self._props["tiles"] = []
        self._props["connected"] = False
        self._props["beat"] = 0

    def show(self, tiles: list[Json], connected: bool, beat: int) -> None:
        self._props["tiles"] = tiles
        self._props["connected"] = connected
        self._props["beat"] = beat
        self.update()

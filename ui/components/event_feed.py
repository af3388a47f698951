"""The newest events of everybody, as they take effect."""

from __future__ import annotations

from nicegui.element import Element

from afterclick.arrays import Json


class EventFeed(Element, component="event_feed.js"):
    """Shows events as /ws/live sends them, newest first."""

    def __init__(self) -> None:
        super().__init__()
        self._props["events"] = []

    def show(self, events: list[Json]) -> None:
        self._props["events"] = events
        self.update()

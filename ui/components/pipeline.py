"""The pipeline as a living picture: topics, stream job, state, ranker, viewers, and what flows between."""

from __future__ import annotations

from nicegui.element import Element

from afterclick.arrays import Json


class Pipeline(Element, component="pipeline.js"):
    """Shows `stations` {name, what, rows: [[label, value, title]]} and, between them, `flows` {label, value,
    speed, rate, title}; `beat` changes whenever the figures are new."""

    def __init__(self) -> None:
        super().__init__()
        self._props["stations"] = []
        self._props["flows"] = []
        self._props["beat"] = 0

    def show(self, stations: list[Json], flows: list[Json], beat: int) -> None:
        self._props["stations"] = stations
        self._props["flows"] = flows
        self._props["beat"] = beat
        self.update()

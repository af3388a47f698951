"""Experiments with their arms and intervals."""

from __future__ import annotations

from nicegui.element import Element

from afterclick.arrays import Json


class Experiments(Element, component="experiments.js"):
    """Shows rows as `ui.experiments.experiment_panel` makes them; `notice` where there are none."""

    def __init__(self, notice: str) -> None:
        super().__init__()
        self._props["experiments"] = []
        self._props["notice"] = notice

    def show(self, experiments: list[Json], notice: str) -> None:
        """Send what has changed."""
        shown = (self._props["experiments"], self._props["notice"])
        if shown != (experiments, notice):
            self._props["experiments"], self._props["notice"] = experiments, notice
            self.update()

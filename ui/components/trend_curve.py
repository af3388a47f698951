"""An item's trend: how many reached for it per day, seen over six horizons."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nicegui.element import Element

from afterclick.arrays import Json
from afterclick.trends import HALF_LIVES_MS

_DAY_MS = 86_400_000


def curve(trends: Mapping[str, float]) -> list[Json]:
    """Per horizon, longest first, the rate that its decayed sum stands for.

    A steady rate r gives a decayed sum of r · half-life / ln 2, so r = sum · ln 2 / half-life (per day). A
    curve that rises to the right means: more now than it used to be.
    """
    rates = {
        name: trends[name] * math.log(2) * _DAY_MS / half_life
        for name, half_life in reversed(HALF_LIVES_MS.items())
        if name in trends
    }
    highest = max(rates.values(), default=0.0) or 1.0
    return [
        {
            "name": name.replace("_", " "),
            "rate": rate,
            "height": round(100 * max(rate, 0.0) / highest, 1),
        }
        for name, rate in rates.items()
    ]


class TrendCurve(Element, component="trend_curve.js"):
    """Draws the rows of `curve`."""

    def __init__(self) -> None:
        super().__init__()
        self._props["rows"] = []

    def show(self, rows: list[Json]) -> None:
        if rows != self._props["rows"]:
            self._props["rows"] = rows
            self.update()

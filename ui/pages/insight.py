"""Panels of the dashboard that are asked for, not pushed: models, exposure, requests, dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog
from nicegui import ui

from afterclick.arrays import Json
from afterclick.errors import AfterclickError
from ui.api import Api
from ui.cards import SOURCE_NAMES
from ui.components.controls import Age, panel
from ui.components.data_table import DataTable
from ui.figures import number
from ui.live import LiveBoard

log = structlog.get_logger()

SHOWN_METRICS = 5


class InsightPanels:
    """Four tables; `refresh` asks the API for what the board does not hold."""

    def __init__(self, api: Api, board: LiveBoard) -> None:
        self._api, self._board = api, board
        self._ages: list[Age] = []
        self._asked = 0

    def build_models(self) -> None:
        """Lay out the table of published models, inside a panel."""
        columns = ("published", "state", "metrics")
        self._models = DataTable(
            "Models published", columns, "No model yet: trends answer until one is trained."
        )

    def build(self, models: bool) -> None:
        """Lay out the panels; the models' own, too, where no other panel has them."""
        with ui.element("div").classes("ac-charts ac-pairs"):
            if models:
                with panel("Models").props("data-panel=models"):
                    self._ages.append(Age())
                    self.build_models()
            with panel("Lists shown, and reacted to").props("data-panel=exposure"):
                self._exposure_age = Age()
                columns = ("source", "model", "lists", "reacted", "clicks", "CTR per item")
                self._exposure = DataTable(
                    "Lists shown", columns, "No list yet since the API began."
                )
            with panel("Dead letters").props("data-panel=dead-letters"):
                self._ages.append(Age())
                self._letters = DataTable(
                    "Dead letters", ("topic", "reason", "bytes"), "None: every event could be read."
                )
            with panel("Recent requests").props("data-panel=requests"):
                self._ages.append(Age())
                self._requests = DataTable(
                    "Recent requests",
                    ("when", "request", "status", "ms"),
                    "None yet since the API began.",
                )

    async def refresh(self) -> None:
        """Fetch and show; a silent API leaves the tables as they are, and their age says so."""
        self._show_exposure()
        try:
            models, letters, requests = await asyncio.gather(
                self._api.get("/models"),
                self._api.get("/dead-letters"),
                self._api.get("/requests"),
            )
        except AfterclickError as error:
            log.info("no insight", error=str(error))
            return
        rows = models["models"]
        self._models.show(model_rows(rows), [n for n, row in enumerate(rows) if row["serving"]])
        self._requests.show([request_row(row) for row in requests["requests"]])
        self._letters.show([letter_row(row) for row in letters["newest"]])
        for age in self._ages:
            age.heard()

    def _show_exposure(self) -> None:
        if self._board.asked != self._asked:
            self._asked = self._board.asked
            self._exposure.show([exposure_row(row) for row in self._board.exposure])
            self._exposure_age.heard()


def model_rows(models: Sequence[Json]) -> list[list[str]]:
    """Version, state, and the first metrics of each model."""
    rows = []
    for model in models:
        state = "serving" if model["serving"] else str(model["refused"] or "replaced")
        metrics = [f"{name} {value:.4g}" for name, value in model["metrics"].items()]
        rows.append([str(model["version"]), state, ", ".join(metrics[:SHOWN_METRICS])])
    return rows


def exposure_row(row: Json) -> list[str]:
    """One source and model; rates in per cent."""
    return [
        SOURCE_NAMES.get(row["source"], str(row["source"])),
        str(row["model_version"] or "-"),
        number(row["lists"]),
        f"{row['reacted'] / max(row['lists'], 1):.1%}",
        number(row["clicks"]),
        f"{row['clicks'] / max(row['items'], 1):.2%}",
    ]


def letter_row(letter: Json) -> list[str]:
    """Where it lies, why it could not be read, how it begins."""
    place = f"{letter['topic']}/{letter['offset']}"
    return [place, letter["headers"].get("error", ""), letter["value"]]


def request_row(request: Json) -> list[str]:
    """When (UTC), what, how it ended, how long it took."""
    when = datetime.fromtimestamp(request["time"], UTC).strftime("%H:%M:%S")
    what = f"{request['method']} {request['target']}"
    return [when, what, str(request["status"]), f"{request['ms']:.1f}"]

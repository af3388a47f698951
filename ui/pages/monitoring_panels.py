"""Panels of the dashboard that poll the API: models, impressions, requests, dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog
from nicegui import ui

from afterclick.arrays import Json
from afterclick.errors import AfterclickError
from ui.cards import SOURCE_NAMES
from ui.gateway import ShopClient
from ui.live_state import LiveState, number
from ui.widgets import Age, DataTable, panel

log = structlog.get_logger()

MAX_METRICS = 5


class MonitoringPanels:
    """Four tables."""

    def __init__(self, client: ShopClient, state: LiveState) -> None:
        self._client, self._state = client, state
        self._ages: list[Age] = []
        self._exposure_version = 0

    def build_models(self) -> None:
        """Add the table of published models to the current panel."""
        self._models = DataTable(
            "Published models",
            ("published", "state", "metrics"),
            "No model yet: lists use trends until one is trained.",
        )

    def build(self, models: bool) -> None:
        """Add the panels; `models`: including one for the published models."""
        with ui.element("div").classes("ac-charts ac-pairs"):
            if models:
                with panel("Models").props("data-panel=models"):
                    self._ages.append(Age())
                    self.build_models()
            with panel("Lists shown, and reactions").props("data-panel=exposure"):
                self._exposure_age = Age()
                columns = ("source", "model", "sent", "seen", "reactions", "clicks", "CTR per item")
                self._exposure = DataTable(
                    "Lists shown", columns, "No list since the start of the API."
                )
            self._letters = self._table(
                "Dead letters",
                "dead-letters",
                ("topic", "reason", "bytes"),
                "None: every event was valid.",
            )
            self._requests = self._table(
                "Recent requests",
                "requests",
                ("time", "request", "status", "ms"),
                "No request since the start of the API.",
            )

    def _table(self, title: str, key: str, columns: Sequence[str], empty: str) -> DataTable:
        with panel(title).props(f"data-panel={key}"):
            self._ages.append(Age())
            return DataTable(title, columns, empty)

    async def refresh(self) -> None:
        """Fetch and show; if the API does not answer, the tables keep their content and age."""
        self._show_exposure()
        try:
            models, letters, requests = await asyncio.gather(
                self._client.get("/models"),
                self._client.get("/dead-letters"),
                self._client.get("/requests"),
            )
        except AfterclickError as error:
            log.info("monitoring data unavailable", error=str(error))
            return
        rows = models["models"]
        self._models.show(model_rows(rows), [n for n, row in enumerate(rows) if row["serving"]])
        self._requests.show([request_row(row) for row in requests["requests"]])
        self._letters.show([dead_letter_row(row) for row in letters["newest"]])
        for age in self._ages:
            age.refresh()

    def _show_exposure(self) -> None:
        if self._state.exposure_version != self._exposure_version:
            self._exposure_version = self._state.exposure_version
            self._exposure.show([exposure_row(row) for row in self._state.exposure])
            self._exposure_age.refresh()


def model_rows(models: Sequence[Json]) -> list[list[str]]:
    """Version, state, and the first metrics of each model."""
    rows = []
    for model in models:
        state = "serving" if model["serving"] else str(model["refused"] or "replaced")
        metrics = [f"{name} {value:.4g}" for name, value in model["metrics"].items()]
        rows.append([str(model["version"]), state, ", ".join(metrics[:MAX_METRICS])])
    return rows


def exposure_row(row: Json) -> list[str]:
    """One source and model, with rates in per cent."""
    return [
        SOURCE_NAMES.get(row["source"], str(row["source"])),
        str(row["model_version"] or "-"),
        number(row["sent"]),
        number(row["lists"]),
        f"{row['reacted'] / max(row['lists'], 1):.1%}",
        number(row["clicks"]),
        f"{row['clicks'] / max(row['items'], 1):.2%}",
    ]


def dead_letter_row(letter: Json) -> list[str]:
    """Topic and offset, the error, the first bytes."""
    position = f"{letter['topic']}/{letter['offset']}"
    return [position, letter["headers"].get("error", ""), letter["value"]]


def request_row(request: Json) -> list[str]:
    """Time (UTC), request, status, duration."""
    time = datetime.fromtimestamp(request["time"], UTC).strftime("%H:%M:%S")
    target = f"{request['method']} {request['target']}"
    return [time, target, str(request["status"]), f"{request['ms']:.1f}"]

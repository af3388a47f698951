"""The dashboard: the pipeline, charts, panels and events, each with the age of its data."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

import structlog
from nicegui import ui

from afterclick.arrays import Json
from afterclick.errors import AfterclickError
from afterclick.io.client import AsyncClient
from ui.cards import SOURCE_NAMES, title_of
from ui.charts import TIME_CHARTS, leaderboard_options, time_options
from ui.gateway import ShopClient
from ui.live_state import LiveState, dashboard_tiles, flows, number, stations
from ui.pages.admin_panels import AdminPanels
from ui.pages.experiments_panel import ExperimentsPanel
from ui.widgets import (
    Age,
    Button,
    DataTable,
    EventFeed,
    Heading,
    PipelineView,
    Segments,
    Tiles,
    page_frame,
    panel,
)

log = structlog.get_logger()

WINDOWS = {"60": "1 min", "300": "5 min", "1800": "30 min"}
LEADERBOARD_WINDOWS = {"hour": "hour", "day": "day", "month": "month", "": "all time"}
LEADERBOARD_BARS = 10
FEED_ROWS = 20


def register(client: ShopClient, state: LiveState, console: AsyncClient | None) -> None:
    """Add the dashboard at `/live`; with the admin panels if there is a console."""

    @ui.page("/live", title="Afterclick · live")
    def live() -> None:
        page = LivePage(client, state, AdminPanels(client, console) if console else None)
        with page_frame("/live", state):
            page.build()
        ui.context.client.on_connect(page.start)


class LivePage:
    """One open dashboard."""

    def __init__(self, client: ShopClient, state: LiveState, admin: AdminPanels | None) -> None:
        self._state = state
        self._paused = False
        self._window_s = 300
        self._leaderboard_window = "hour"
        self._seen_version = self._drawn_version = -1
        self._monitoring = MonitoringPanels(client, state)
        self._experiments = ExperimentsPanel(client)
        self._admin = admin
        self._timers: list[ui.timer] = []

    def build(self) -> None:
        """Add the elements of the page."""
        self._root = ui.element("div").classes("ac-live")
        with self._root:
            Heading("Live", "h1")
            self._pipeline = PipelineView()
            self._tiles = Tiles()
            self._build_controls()
            with ui.element("div").classes("ac-charts"):
                self._charts = [
                    self._build_chart(f"{chart.title}, {chart.unit}", chart.key)
                    for chart in TIME_CHARTS
                ]
                self._leaderboard = self._build_chart("Popularity leaderboard", "leaderboard")
            if self._admin:
                self._admin.build(self._monitoring.build_models)
            self._experiments.build()
            self._monitoring.build(models=self._admin is None)
            with panel("Events as they are applied (a sample)"):
                self._feed_age = Age()
                self._feed = EventFeed()
        self._show()

    def start(self) -> None:
        """Start to update the page, once the browser has connected."""
        if self._timers:
            return
        with self._root:
            self._timers = [
                ui.timer(0.5, self._refresh),
                ui.timer(2.0, self._refresh_leaderboard),
                ui.timer(5.0, self._monitoring.refresh),
                ui.timer(5.0, self._experiments.refresh),
            ]
            if self._admin:
                self._timers.append(ui.timer(1.0, self._admin.refresh))

    def _build_controls(self) -> None:
        with ui.element("div").classes("ac-controls").props('role=group aria-label="Charts"'):
            self._pause = Button("Pause", self._toggle).props(
                "data-testid=pause aria-pressed=false"
            )
            Segments("Window", WINDOWS, str(self._window_s), self._set_window)
            Segments(
                "Leaderboard over",
                LEADERBOARD_WINDOWS,
                self._leaderboard_window,
                self._set_leaderboard,
            )

    def _build_chart(self, title: str, key: str) -> _ChartPanel:
        with panel(title).classes("ac-chart").props(f"data-chart={key}"):
            chart = ui.echart({"series": []}).props(f'role=img aria-label="{title}"')
            return _ChartPanel(Age(), chart)

    def _toggle(self) -> None:
        self._paused = not self._paused
        self._pause.props(f"aria-pressed={'true' if self._paused else 'false'}")
        self._pause.text = "Resume" if self._paused else "Pause"
        self._show()

    def _set_window(self, value: str) -> None:
        self._window_s, self._drawn_version = int(value), -1
        self._show()

    async def _set_leaderboard(self, value: str) -> None:
        self._leaderboard_window = value
        await self._refresh_leaderboard()

    def _refresh(self) -> None:
        if self._state.version != self._seen_version:
            self._seen_version = self._state.version
            self._show()

    def _show(self) -> None:
        state = self._state
        version = state.figures_version
        self._tiles.show(dashboard_tiles(state.figures) if state.figures else [], version)
        self._pipeline.show(stations(state.figures), flows(state.figures), version)
        if self._paused:
            return
        self._feed.show(list(islice(state.events, FEED_ROWS)))
        if self._drawn_version != version:
            self._draw()

    def _draw(self) -> None:
        """Draw the charts: with each figures message, and after a change of the window."""
        state = self._state
        self._drawn_version = state.figures_version
        start = state.figures.get("time", 0.0) - self._window_s
        window = [figures for figures in state.history if figures["time"] > start]
        for chart, chart_panel in zip(TIME_CHARTS, self._charts, strict=True):
            chart_panel.draw(time_options(chart, window))
        for age in (self._feed_age, *(chart_panel.age for chart_panel in self._charts)):
            age.show(state.figures_version)

    async def _refresh_leaderboard(self) -> None:
        if self._paused:
            return
        try:
            items = await self._state.leaderboard(self._leaderboard_window)
        except AfterclickError as error:
            log.info("leaderboard unavailable", error=str(error))
            return
        bars = [(title_of(item), item.score) for item in items[:LEADERBOARD_BARS]]
        self._leaderboard.draw(leaderboard_options(bars))
        self._leaderboard.age.refresh()


@dataclass(frozen=True)
class _ChartPanel:
    """A chart with the age of its data, which also grows while paused."""

    age: Age
    chart: ui.echart

    def draw(self, options: dict[str, object]) -> None:
        self.chart.options.clear()
        self.chart.options.update(options)
        self.chart.update()


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
                    "Lists shown", columns, "No list in the last seven days."
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

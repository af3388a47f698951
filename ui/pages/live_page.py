"""The dashboard: the pipeline, charts, panels and events, each with the age of its data."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import structlog
from nicegui import ui

from afterclick.errors import AfterclickError
from afterclick.io.client import AsyncClient
from ui.cards import title_of
from ui.charts import TIME_CHARTS, leaderboard_options, time_options
from ui.gateway import ShopClient
from ui.live_state import LiveState, dashboard_tiles, flows, stations
from ui.pages.admin_panels import AdminPanels
from ui.pages.experiments_panel import ExperimentsPanel
from ui.pages.monitoring_panels import MonitoringPanels
from ui.pages.page_frame import page_frame
from ui.widgets import Age, Button, EventFeed, Heading, PipelineView, Segments, Tiles, panel

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

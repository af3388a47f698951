"""The dashboard: the pipeline as it runs, what is fresh and what is stale."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import structlog
from nicegui import ui

from afterclick.errors import AfterclickError
from afterclick.io.client import AsyncClient
from ui.api import Api
from ui.cards import title_of
from ui.charts import TIME_CHARTS, race_options, time_options
from ui.components.controls import Age, Button, Heading, Segments, panel
from ui.components.event_feed import EventFeed
from ui.components.pipeline import Pipeline
from ui.components.tiles import Tiles
from ui.figures import board_tiles, flows, stations
from ui.live import LiveBoard
from ui.pages.experiments import ExperimentsPanel
from ui.pages.frame import frame
from ui.pages.insight import InsightPanels
from ui.pages.operations import OperationsPanels

log = structlog.get_logger()

WINDOWS = {"60": "1 min", "300": "5 min", "1800": "30 min"}
RACE_WINDOWS = {"hour": "hour", "day": "day", "month": "month", "": "all time"}
RACERS = 10


def register(api: Api, board: LiveBoard, console: AsyncClient | None) -> None:
    """Add the dashboard at `/live`; with the admin panels if there is a console."""

    @ui.page("/live", title="Afterclick · live")
    def live() -> None:
        page = LivePage(api, board, OperationsPanels(api, console) if console else None)
        with frame("/live", board):
            page.build()
        ui.context.client.on_connect(page.begin)


class LivePage:
    """One open dashboard. It reads the board that all pages share, and only asks for what is popular."""

    def __init__(self, api: Api, board: LiveBoard, operations: OperationsPanels | None) -> None:
        self._api, self._board = api, board
        self._paused = False
        self._window_s = 300
        self._race_window = "hour"
        self._seen = self._drawn = -1
        self._insight = InsightPanels(api, board)
        self._experiments = ExperimentsPanel(api)
        self._operations = operations
        self._timers: list[ui.timer] = []

    def build(self) -> None:
        """Lay out the page."""
        self._root = ui.element("div").classes("ac-live")
        with self._root:
            Heading("Live", "h1")
            self._pipeline = Pipeline()
            self._tiles = Tiles()
            self._build_controls()
            with ui.element("div").classes("ac-charts"):
                self._charts = [
                    self._build_chart(f"{chart.title}, {chart.unit}", chart.key)
                    for chart in TIME_CHARTS
                ]
                self._race = self._build_chart("Popularity race", "race")
            if self._operations:
                self._operations.build(self._insight.build_models)
            self._experiments.build()
            self._insight.build(models=self._operations is None)
            with panel("Events as they take effect (a sample)"):
                self._feed_age = Age()
                self._feed = EventFeed()
        self._show()

    def begin(self) -> None:
        """Start to follow, once the browser is there."""
        if self._timers:
            return
        with self._root:
            self._timers = [
                ui.timer(0.5, self._refresh),
                ui.timer(2.0, self._refresh_race),
                ui.timer(5.0, self._insight.refresh),
                ui.timer(5.0, self._experiments.refresh),
            ]
            if self._operations:
                self._timers.append(ui.timer(1.0, self._operations.refresh))

    def _build_controls(self) -> None:
        with ui.element("div").classes("ac-controls").props('role=group aria-label="Charts"'):
            self._pause = Button("Pause", self._toggle).props(
                "data-testid=pause aria-pressed=false"
            )
            Segments("Window", WINDOWS, str(self._window_s), self._set_window)
            Segments("Race over", RACE_WINDOWS, self._race_window, self._set_race)

    def _build_chart(self, title: str, key: str) -> _Chart:
        with panel(title).classes("ac-chart").props(f"data-chart={key}"):
            return _Chart(Age(), ui.echart({"series": []}).props(f'role=img aria-label="{title}"'))

    def _toggle(self) -> None:
        self._paused = not self._paused
        self._pause.props(f"aria-pressed={'true' if self._paused else 'false'}")
        self._pause.text = "Go on" if self._paused else "Pause"
        self._show()

    def _set_window(self, value: str) -> None:
        self._window_s, self._drawn = int(value), -1
        self._show()

    async def _set_race(self, value: str) -> None:
        self._race_window = value
        await self._refresh_race()

    def _refresh(self) -> None:
        if self._board.version != self._seen:
            self._seen = self._board.version
            self._show()

    def _show(self) -> None:
        board = self._board
        self._tiles.show(board_tiles(board.figures) if board.figures else [], board.beats)
        self._pipeline.show(stations(board.figures), flows(board.figures), board.beats)
        if self._paused:
            return
        self._feed.show(list(islice(board.events, 20)))
        if self._drawn != board.beats:
            self._draw()

    def _draw(self) -> None:
        """Draw the charts anew: once a second, as the figures come, and where the window changes."""
        board = self._board
        self._drawn = board.beats
        newest = board.figures.get("time", 0.0)
        past = [figures for figures in board.past if figures["time"] > newest - self._window_s]
        for chart, shown in zip(TIME_CHARTS, self._charts, strict=True):
            shown.draw(time_options(chart, past))
        for age in (self._feed_age, *(shown.age for shown in self._charts)):
            age.show(board.beats)

    async def _refresh_race(self) -> None:
        if self._paused:
            return
        try:
            items = await self._board.race(self._race_window)
        except AfterclickError as error:
            log.info("no popular items", error=str(error))
            return
        self._race.draw(race_options([(title_of(item), item.score) for item in items[:RACERS]]))
        self._race.age.heard()


@dataclass(frozen=True)
class _Chart:
    """A chart and how old what it shows is: held still by *Pause*, it says so."""

    age: Age
    chart: ui.echart

    def draw(self, options: dict[str, object]) -> None:
        self.chart.options.clear()
        self.chart.options.update(options)
        self.chart.update()

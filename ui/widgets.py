"""NiceGUI elements of the pages: native controls, wrappers of the Vue components, and the frame of
every page with its header and stats bar.

A wrapper sets the props of its component (`ui/components/*.js`) and passes events to callbacks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement
from nicegui.events import GenericEventArguments

from afterclick.api import ItemSummary
from afterclick.arrays import Json
from afterclick.trends import HALF_LIVES_MS
from ui.cards import DemoUser, avatar, category_hue, title_of
from ui.gateway import Snippet
from ui.live_state import LiveState, stats_bar_tiles

Act = Callable[[str, str, str], Awaitable[None]]
"""(item_id, action, token)"""
Undo = Callable[[str, str], Awaitable[None]]
"""(event_id, token)"""
PanelEvent = Callable[[str, Json], Awaitable[None]]
"""(name of the event, its arguments)"""
_DAY_MS = 86_400_000


class Heading(TextElement):
    """A heading of plain text."""

    def __init__(self, text: str, tag: str = "h2") -> None:
        super().__init__(tag=tag, text=text)


class Button(TextElement):
    """A native button."""

    def __init__(self, text: str, on_click: Callable[[], Any]) -> None:
        super().__init__(tag="button", text=text)
        self.props("type=button").classes("ac-button")
        self.on("click", on_click, args=[])


def panel(title: str) -> Element:
    """A panel with a heading; use as a context manager to add its content."""
    section = ui.element("section").classes("ac-panel")
    with section:
        Heading(title)
    return section


class VueElement(Element):
    """A Vue component with props set from Python."""

    def __init__(self, **props: Any) -> None:
        super().__init__()
        self._props.update(props)

    def set_props(self, **props: Any) -> None:
        """Send the props to the browser if one has changed."""
        if any(self._props.get(name) != value for name, value in props.items()):
            self._props.update(props)
            self.update()

    def _listen(self, name: str, handle: Callable[[Json], Any], throttle: float = 0) -> None:
        """Call `handle` (which may be async) with the arguments of each event `name`."""

        def listener(event: GenericEventArguments) -> Any:
            return handle(event.args)

        self.on(name, listener, throttle=throttle)


class Segments(VueElement, component="components/segments.js"):
    """A row of buttons of which one is selected; calls `on_pick(key)`."""

    def __init__(
        self, label: str, options: Mapping[str, str], value: str, on_pick: Callable[[str], Any]
    ) -> None:
        rows = [{"key": key, "name": name} for key, name in options.items()]
        super().__init__(label=label, options=rows, value=value)

        def pick(args: Json) -> Any:
            self.set_props(value=args["key"])
            return on_pick(args["key"])

        self._listen("pick", pick)


class Age(VueElement, component="components/age.js"):
    """Seconds since the last update, counted in the browser, so that a silent server is visible."""

    def __init__(self) -> None:
        super().__init__(version=0)

    def refresh(self) -> None:
        """Restart the count."""
        self.show(self._props["version"] + 1)

    def show(self, version: int) -> None:
        """Restart the count if `version` has changed; 0 means never updated."""
        self.set_props(version=version)


class Tiles(VueElement, component="components/tiles.js"):
    """Large figures, each with its age."""

    def __init__(self) -> None:
        super().__init__(tiles=[], version=0)

    def show(self, tiles: list[Json], version: int) -> None:
        self.set_props(tiles=tiles, version=version)


class StatsBar(VueElement, component="components/stats_bar.js"):
    """The bar of live figures at the top of every page."""

    def __init__(self) -> None:
        super().__init__(tiles=[], connected=False, version=0)

    def show(self, tiles: list[Json], connected: bool, version: int) -> None:
        self.set_props(tiles=tiles, connected=connected, version=version)


class PipelineView(VueElement, component="components/pipeline.js"):
    """The stages of the pipeline and the flows between them."""

    def __init__(self) -> None:
        super().__init__(stations=[], flows=[], version=0)

    def show(self, stations: list[Json], flows: list[Json], version: int) -> None:
        self.set_props(stations=stations, flows=flows, version=version)


class DataTable(VueElement, component="components/data_table.js"):
    """A text table with `columns`; shows the text `empty` if there are no rows."""

    def __init__(self, label: str, columns: Sequence[str], empty: str) -> None:
        super().__init__(label=label, columns=list(columns), empty=empty, rows=[], marked=[])

    def show(self, rows: Sequence[Sequence[str]], marked: Sequence[int] = ()) -> None:
        """Show rows; `marked` are the indices of highlighted rows."""
        self.set_props(rows=[list(row) for row in rows], marked=list(marked))


class EventFeed(VueElement, component="components/event_feed.js"):
    """Events of all users as /ws/live sends them, newest first."""

    def __init__(self) -> None:
        super().__init__(events=[])

    def show(self, events: list[Json]) -> None:
        self.set_props(events=events)


class ExperimentList(VueElement, component="components/experiments.js"):
    """Experiments (`experiments_panel.experiment_view`), or the text `notice`."""

    def __init__(self, notice: str) -> None:
        super().__init__(experiments=[], notice=notice)

    def show(self, experiments: list[Json], notice: str) -> None:
        self.set_props(experiments=experiments, notice=notice)


class ListComparison(VueElement, component="components/comparison.js"):
    """Lists side by side, from `compare_page.column`."""

    def __init__(self, columns: list[Json]) -> None:
        super().__init__(columns=columns)


class TrendCurve(VueElement, component="components/trend_curve.js"):
    """The trend of an item as one bar per half-life."""

    def __init__(self) -> None:
        super().__init__(rows=[])

    def show(self, trends: Mapping[str, float]) -> None:
        self.set_props(rows=trend_rows(trends))


def trend_rows(trends: Mapping[str, float]) -> list[Json]:
    """Interactions per day for each half-life, longest first.

    A constant rate r gives a decayed sum of r · half-life / ln 2, so r = sum · ln 2 / half-life.
    A curve that rises to the right means an increasing rate.
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


class Timeline(VueElement, component="components/timeline.js"):
    """A user's actions, newest first (`UserAction.timeline_row`)."""

    def __init__(self, on_undo: Undo) -> None:
        super().__init__(rows=[])
        self._listen("undo", lambda args: on_undo(args["event_id"], ""))

    def show(self, rows: list[Json]) -> None:
        self.set_props(rows=rows)


class InterestPicker(VueElement, component="components/interest_picker.js"):
    """Categories to select; calls `on_change(chosen)` after each change."""

    def __init__(self, on_change: Callable[[tuple[str, ...]], Any]) -> None:
        super().__init__(categories=[], chosen=[])
        self._listen("change", lambda args: on_change(tuple(args["chosen"])))

    def show(self, categories: Sequence[str], chosen: Sequence[str]) -> None:
        """Offer categories; the picker is hidden if there are none."""
        self.set_props(categories=list(categories), chosen=list(chosen))


class UserPicker(VueElement, component="components/user_picker.js"):
    """Demo users, a new user, or any user id; calls `on_pick(user_id)`, with "" for a new user."""

    def __init__(
        self, users: tuple[DemoUser, ...], on_pick: Callable[[str], Awaitable[None]]
    ) -> None:
        rows = [
            {"id": user.user_id, "name": user.name, "story": user.story, **avatar(user.name)}
            for user in users
        ]
        super().__init__(users=rows, current={"id": "", "name": "", "story": ""})
        self._listen("pick", lambda args: on_pick(args["user_id"]))

    def show(self, user_id: str, name: str, story: str) -> None:
        self.set_props(current={"id": user_id, "name": name, "story": story, **avatar(name)})


class SearchBox(VueElement, component="components/search_box.js"):
    """Search while typing: calls `find(words)`, and `on_open(item_id)` for a selected result."""

    def __init__(
        self, find: Callable[[str], Awaitable[Sequence[ItemSummary]]], on_open: Callable[[str], Any]
    ) -> None:
        super().__init__(results=[], answered="")
        self._find = find
        self._listen("search", self._search, throttle=0.12)
        self._listen("open", lambda args: on_open(args["item_id"]))

    async def _search(self, args: Json) -> None:
        words = args["words"].strip()
        items = await self._find(words) if words else ()
        rows = [
            {
                "id": item.item_id,
                "title": title_of(item),
                "category": " / ".join(item.categories[-2:]),
                "hue": category_hue(item.categories),
            }
            for item in items
        ]
        self.set_props(results=rows, answered=words)


class CardGrid(VueElement, component="components/card_grid.js"):
    """The list as cards. Cards keep their elements, so a changed list moves them.

    Calls `on_act` for a button of a card, `on_open(item_id)` for its title, `on_why(item_id)` for
    its score, `on_undo` for the undo button. `hint` is shown while there is no headline.
    """

    def __init__(
        self,
        on_act: Act,
        on_open: Callable[[str], Any],
        on_why: Callable[[str], Any] | None = None,
        on_undo: Undo | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(hint=hint, cards=[], undo="", stamps={}, impression="")
        self._listen("act", lambda args: on_act(args["item_id"], args["action"], args["token"]))
        self._listen("open", lambda args: on_open(args["item_id"]))
        if on_why:
            self._listen("why", lambda args: on_why(args["item_id"]))
        if on_undo:
            self._listen("undo", lambda args: on_undo(args["event_id"], args["token"]))

    def on_seen(self, handle: Callable[[str], Any]) -> None:
        """Call `handle(impression_id)` when a list is on the screen of a visible page, once."""
        self._listen("seen", lambda args: handle(args["impression_id"]))

    def prepare(
        self,
        impression_id: str,
        stamps_ms: Mapping[str, float],
        cause: str,
        undo: str,
        undo_title: str,
    ) -> None:
        """Set what the next `show` sends along.

        `impression_id`: of the list, "" for a preview; `stamps_ms`: when its event passed each
        stage (the browser adds its own); `cause`: as in `you liked Canon EOS Rebel`; `undo`: event
        id that the undo button undoes, "" for no button.
        """
        self._props["impression"] = impression_id
        self._props["stamps"] = {**stamps_ms, "shown": time.time() * 1000}
        self._props["cause"] = cause
        self._props["undo"] = undo
        self._props["undoTitle"] = undo_title

    def show(
        self, cards: list[Json], headline: str = "", answered: str = "", failed: str = ""
    ) -> None:
        """Show a list. `answered`, `failed`: token of the action that caused it, that failed."""
        self._props["cards"] = cards
        self._props["headline"] = headline
        self._props["answered"] = answered
        self._props["failed"] = failed
        self.update()


class ReceiptDrawer(VueElement, component="components/receipt_drawer.js"):
    """A dialog with the content of `receipt.receipt`."""

    def __init__(self) -> None:
        super().__init__(receipt=None)

    def show(self, receipt: Json) -> None:
        """Open the drawer."""
        self._props["receipt"] = receipt
        self.run_method("open")
        self.update()

    def replace(self, receipt: Json) -> None:
        """Update the receipt if it is of the item that is shown."""
        shown = self._props["receipt"]
        if shown and shown["item_id"] == receipt["item_id"]:
            self.set_props(receipt=receipt)


class SnippetDrawer(VueElement, component="components/snippet_drawer.js"):
    """A dialog with API calls to copy."""

    def __init__(self) -> None:
        super().__init__(snippets=[])

    def show(self, snippets: Sequence[Snippet]) -> None:
        """Open the drawer."""
        self._props["snippets"] = [asdict(snippet) for snippet in snippets]
        self.run_method("open")
        self.update()


class _AdminElement(VueElement):
    """A component that hands each of its `events` to `on_event(name, arguments)`."""

    events: tuple[str, ...] = ()

    def __init__(self, on_event: PanelEvent, **props: Any) -> None:
        super().__init__(**props)
        for name in self.events:
            self._listen_as(name, on_event)

    def _listen_as(self, name: str, on_event: PanelEvent) -> None:
        self._listen(name, lambda args: on_event(name, args))


class ReplayPanel(_AdminElement, component="components/replay_control.js"):
    """`replay` as in GET /admin/console."""

    events = ("change",)


class SimulatorPanel(_AdminElement, component="components/simulator_control.js"):
    """`simulator` as in GET /admin/console, and `items` to offer as trending."""

    events = ("start", "change", "stop")


class ModelsPanel(_AdminElement, component="components/models_control.js"):
    """The content of `admin_panels.models_view`."""

    events = ("act",)


class FaultPanel(_AdminElement, component="components/fault_injection.js"):
    """The content of `admin_panels.faults_view`."""

    events = ("fault", "reconcile")


_PAGES = (("/", "Shop"), ("/live", "Live"))
_HEAD = (
    '<link rel="stylesheet" href="/static/afterclick.css"><script src="/static/theme.js"></script>'
    '<link rel="modulepreload" href="/static/age_mixin.js">'
)
_SKIP = '<a class="ac-skip" href="#main">Skip to the content</a>'
_THEME_BUTTON = (
    '<button type="button" class="ac-theme" onclick="afterclickTheme()" '
    'aria-label="Light or dark" title="Light or dark">◐</button>'
)


@contextmanager
def page_frame(current: str, state: LiveState) -> Iterator[None]:
    """A page with header and stats bar; use as a context manager to add its content."""
    ui.add_head_html(_HEAD)
    ui.query(".nicegui-content").classes("ac-page")
    with ui.element("header").classes("ac-header"):
        ui.html(_SKIP + '<a class="ac-logo" href="/"><i></i>Afterclick</a>', sanitize=False)
        with ui.element("nav").props('aria-label="Pages"'):
            for path, name in _PAGES:
                mark = ' aria-current="page"' if path == current else ""
                ui.html(f'<a href="{path}"{mark}>{name}</a>', sanitize=False)
        ui.html(_THEME_BUTTON, sanitize=False)
    _follow(StatsBar(), state)
    with ui.element("div").classes("ac-main").props("id=main tabindex=-1"):
        yield


def _follow(bar: StatsBar, state: LiveState) -> None:
    """Update the bar, at most four times a second, from the time the browser has connected."""
    version = -1
    timers: list[ui.timer] = []

    def refresh() -> None:
        nonlocal version
        if state.version != version:
            version = state.version
            bar.show(stats_bar_tiles(state.figures), state.connected, state.figures_version)

    def start() -> None:
        if not timers:  # an earlier timer would send the page before its list is loaded
            with bar:
                timers.append(ui.timer(0.25, refresh))

    refresh()
    ui.context.client.on_connect(start)

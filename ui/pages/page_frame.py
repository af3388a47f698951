"""The parts of every page: the header and the bar of live figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nicegui import ui

from ui.live_state import LiveState, stats_bar_tiles
from ui.widgets import StatsBar

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

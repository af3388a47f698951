"""What every page has: the header, the strip of live figures, the footer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nicegui import ui

from ui.components.live_strip import LiveStrip
from ui.figures import strip_tiles
from ui.live import LiveBoard

_PAGES = (("/", "Shop"), ("/live", "Live"))
_HEAD = (
    '<link rel="stylesheet" href="/static/afterclick.css"><script src="/static/theme.js"></script>'
)
_SKIP = '<a class="ac-skip" href="#main">Skip to the content</a>'
_THEME_BUTTON = (
    '<button type="button" class="ac-theme" onclick="afterclickTheme()" '
    'aria-label="Light or dark" title="Light or dark">◐</button>'
)


@contextmanager
def frame(here: str, board: LiveBoard) -> Iterator[None]:
    """A page with its header and live strip; build the page's own content inside."""
    ui.add_head_html(_HEAD)
    ui.query(".nicegui-content").classes("ac-page")
    with ui.element("header").classes("ac-header"):
        ui.html(_SKIP + '<a class="ac-logo" href="/"><i></i>Afterclick</a>', sanitize=False)
        with ui.element("nav").props('aria-label="Pages"'):
            for path, name in _PAGES:
                current = ' aria-current="page"' if path == here else ""
                ui.html(f'<a href="{path}"{current}>{name}</a>', sanitize=False)
        ui.html(_THEME_BUTTON, sanitize=False)
    strip = LiveStrip()
    show_live(strip, board)
    with ui.element("div").classes("ac-main").props("id=main tabindex=-1"):
        yield


def show_live(strip: LiveStrip, board: LiveBoard) -> None:
    """Keep a strip as fresh as the board, four times a second at most, once the browser is connected."""
    seen = -1
    timers: list[ui.timer] = []

    def refresh() -> None:
        nonlocal seen
        if board.version != seen:
            seen = board.version
            strip.show(strip_tiles(board.figures), board.connected, board.beats)

    def start() -> None:
        if not timers:  # a timer made earlier would send the page before its list is there
            with strip:
                timers.append(ui.timer(0.25, refresh))

    refresh()
    ui.context.client.on_connect(start)

"""A flame graph of one thread from `py-spy record --format raw`: `python -m infra.benches.flame RAW SVG`.

Frames are functions, without lines and without the folders of one machine; what is under half a percent is
left out. A frame is as wide as its share of the thread's samples, and lies under the frames it called.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

LEAST = 0.005
"""Share of the samples under which a frame is not drawn."""
WIDTH, ROW, LETTER = 1200, 17, 6.6
_PLACE = re.compile(r"^(?P<name>.*?) \((?P<path>.*?)(?::\d+)?\)$")
_COLOURS = {
    "serving": "#e8894a",
    "afterclick": "#d9a93a",
    "native": "#b9c4d0",
    "elsewhere": "#8fb0cf",
}


@dataclass
class Frame:
    """A function and what it called."""

    name: str
    path: str
    samples: int = 0
    calls: dict[str, Frame] = field(default_factory=dict)

    def add(self, stack: list[str], samples: int) -> None:
        """Count a stack below this frame."""
        frame = self
        frame.samples += samples
        for text in stack:
            name, path = _named(text)
            frame = frame.calls.setdefault(f"{name} {path}", Frame(name, path))
            frame.samples += samples


def read(raw: str, thread: str = "MainThread") -> Frame:
    """The stacks of a thread from py-spy's lines `thread;frame;frame count`."""
    root = Frame("all", "")
    for line in raw.splitlines():
        stack, _, samples = line.rpartition(" ")
        first, *frames = stack.split(";")
        if thread in first:
            root.add(frames, int(samples))
    return root


def _named(text: str) -> tuple[str, str]:
    """Function and file of a frame: the file inside its package, or its name alone."""
    found = _PLACE.match(text)
    if found is None:
        return text, ""
    path = found["path"].replace("\\", "/").partition("site-packages/")
    inside = path[2] or path[0]
    return found["name"], inside if not inside.startswith("/") else inside.rpartition("/")[2]


def _skipped(root: Frame) -> Frame:
    """The first frame that calls more than one, so that the start of the program takes no room."""
    while len(root.calls) == 1:
        root = next(iter(root.calls.values()))
    return root


def draw(root: Frame) -> str:
    """The SVG."""
    boxes = list(_boxes(_skipped(root), 0.0, 0, max(root.samples, 1)))
    height = (1 + max((depth for depth, _ in boxes), default=0)) * ROW
    body = "\n".join(text for _, text in boxes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="monospace" font-size="11">\n{body}\n</svg>\n'
    )


def _boxes(frame: Frame, left: float, depth: int, total: int) -> Iterator[tuple[int, str]]:
    """Each drawn frame below `frame`, and itself: depth and SVG."""
    share = frame.samples / total
    if share < LEAST:
        return
    yield depth, _box(frame, left * WIDTH, depth * ROW, share)
    for called in sorted(frame.calls.values(), key=lambda one: -one.samples):
        yield from _boxes(called, left, depth + 1, total)
        left += called.samples / total


def _box(frame: Frame, x: float, y: int, share: float) -> str:
    label = f"{frame.name} ({frame.path})" if frame.path else frame.name
    colour = _COLOURS.get(
        frame.path.partition("/")[0], _COLOURS["elsewhere" if frame.path else "native"]
    )
    shown = label[: int((share * WIDTH - 4) / LETTER)]
    text = f'<text x="{x + 2:.1f}" y="{y + 12}">{escape(shown)}</text>' if len(shown) > 2 else ""
    title = f"<title>{escape(label)}: {share:.1%}</title>"
    box = f'x="{x:.1f}" y="{y}" width="{share * WIDTH - 0.5:.1f}" height="{ROW - 1}" fill={quoteattr(colour)}'
    return f"<g>{title}<rect {box}/>{text}</g>"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(draw(read(Path(sys.argv[1]).read_text())))

"""What `afterclick up` shows: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from infra.stack.part import Part, State, memory_mib
from infra.stack.stages import Figures, Stage
from infra.stack.supervisor import Stack

_COLOURS = {
    State.WAITING: "dim",
    State.STARTING: "yellow",
    State.READY: "green",
    State.RESTARTING: "red",
    State.STOPPED: "dim",
}
_MARKS = {"waiting": "·", "running": "▸", "done": "✓", "failed": "✗", "left out": "-"}
_BAR = 24


@dataclass
class View:
    """Shows a stack. `note` prints a line that stays; the table above it is redrawn."""

    console: Console
    figures: Figures = field(default_factory=Figures)
    began: float = field(default_factory=time.monotonic)

    def note(self, line: str) -> None:
        """Print a line with the seconds since the start."""
        self.console.print(
            f"[dim]{time.monotonic() - self.began:7.1f} s[/dim]  {line}",
            highlight=False,
            soft_wrap=True,
        )

    def show(self, figures: Figures) -> None:
        """Take new figures."""
        self.figures = figures

    @contextmanager
    def shown(self) -> Iterator[Live | None]:
        """The live table for the time of a `with`; nothing where the output is no terminal."""
        if not self.console.is_terminal:
            yield None
            return
        with Live(console=self.console, auto_refresh=False, transient=False) as live:
            yield live

    async def follow(self, stack: Stack, live: Live | None) -> None:
        """Redraw twice a second until the stack stops."""
        while True:
            if live:
                live.update(await asyncio.to_thread(self.draw, stack), refresh=True)
            await asyncio.sleep(0.5 if live else 0.1)

    def draw(self, stack: Stack) -> RenderableType:
        """The table of parts, the stages of the replay and the line of figures."""
        rows: list[RenderableType] = [_parts(stack.parts)]
        rows += [_stage(stage) for stage in stack.stages if stage.state != "waiting"]
        rows.append(_figures(self.figures))
        return Group(*rows)


def _parts(parts: list[Part]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("part", min_width=8)
    table.add_column("state", min_width=10)
    for heading in ("pid", "MiB", "restarts"):
        table.add_column(heading, justify="right")
    table.add_column("where")
    for part in parts:
        pid = part.process.pid if part.process.running else None
        memory = memory_mib(pid)
        table.add_row(
            part.name,
            Text(part.state, style=_COLOURS[part.state]),
            str(pid or "-"),
            f"{memory:.0f}" if memory else "-",
            str(part.restarts or "-"),
            part.url or "",
        )
    return table


def _stage(stage: Stage) -> Text:
    line = Text(f"{_MARKS[stage.state]} {stage.name:<9}")
    if stage.total:
        share = min(1.0, stage.done / stage.total)
        full = round(share * _BAR)
        line.append("━" * full, style="green").append("━" * (_BAR - full), style="dim")
        line.append(f" {stage.done:,}/{stage.total:,}")
    line.append(f"  {stage.elapsed:.0f} s", style="dim")
    return line.append(f"  {stage.note}" if stage.note else "")


def _figures(figures: Figures) -> Text:
    model = figures.model_version or "none yet"
    line = f"{figures.log_events:,} events in the log, {figures.lag:,} not yet applied, "
    line += f"{figures.events_per_s:,.0f}/s; model {model}"
    return Text(line, style="bold")

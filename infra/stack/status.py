"""The state of a stack: its record for other shells, and its display in this one.

reads   file  <home>/stack.lock, stack.json
writes  file  <home>/stack.json, once a second while a stack runs
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from afterclick.io.files import lock_owner
from afterclick.io.home import PartRecord, StackProgress, StackRecord, StepRecord

LOCK = "stack.lock"
_COLOURS = {"starting": "yellow", "ready": "green", "restarting": "red"}
_MARKS = {"running": "▸", "done": "✓", "failed": "✗", "skipped": "-"}
_BAR = 24


@dataclass
class DemoStep:
    """One step of the demo and its progress."""

    name: str
    state: str = "waiting"
    note: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    _began: float = field(default=0.0, repr=False)

    def begin(self) -> None:
        self.state, self._began = "running", time.monotonic()

    def end(self, state: str = "done") -> None:
        self.seconds, self.state = self.elapsed, state

    def skip(self, note: str) -> None:
        """End the step without work."""
        self.note, self.state = note, "skipped"

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning of the step, or its duration."""
        return time.monotonic() - self._began if self.state == "running" else self.seconds

    def record(self) -> StepRecord:
        return StepRecord(
            name=self.name,
            state=self.state,
            note=self.note,
            done=self.done,
            total=self.total,
            seconds=round(self.elapsed, 1),
        )


@dataclass
class Display:
    """Prints messages; below them, on a terminal, a table that is redrawn."""

    console: Console
    began: float = field(default_factory=time.monotonic)
    _live: Live | None = field(default=None, init=False)

    def note(self, line: str) -> None:
        """Print a line with the seconds since the start."""
        self.console.print(
            f"[dim]{time.monotonic() - self.began:7.1f} s[/dim]  {line}",
            highlight=False,
            soft_wrap=True,
        )

    def draw(self, record: StackRecord) -> None:
        """Replace the table."""
        if self._live:
            self._live.update(table(record), refresh=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the table during a `with`, if the output is a terminal."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, auto_refresh=False, transient=False) as self._live:
            yield


def running_stack(home: Path) -> int | None:
    """The process id of the stack of this home; None if none runs."""
    owner = lock_owner(home / LOCK)
    return int(owner) if owner else None


def read_record(home: Path) -> StackRecord:
    """The record of the stack of this home; `running` is false if none runs."""
    pid = running_stack(home)
    if pid is None:
        return StackRecord(running=False, pid=None, home=str(home))
    record = StackRecord.read(home)
    if record is None or record.pid != pid:  # not yet written
        return StackRecord(running=True, pid=pid, home=str(home))
    return record


def table(record: StackRecord) -> RenderableType:
    """A stack as a table of its processes, the steps of the demo, and the progress of the loop."""
    if not record.running:
        return Text(
            f"no stack runs in {record.home}: start one with `afterclick up` or `make demo`"
        )
    steps = [_step(step) for step in record.stages if step.state != "waiting"]
    header = Text(f"stack {record.pid or os.getpid()}, data in {record.home}")
    return Group(header, _parts(record.parts), *steps, _progress(record.figures))


def _parts(parts: Sequence[PartRecord]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("part", "state"):
        shown.add_column(heading, min_width=8)
    for heading in ("pid", "port", "MiB", "restarts"):
        shown.add_column(heading, justify="right")
    for heading in ("url", "log"):
        shown.add_column(heading, overflow="fold")
    for part in parts:
        numbers = (part.pid, part.port, part.memory_mib and round(part.memory_mib), part.restarts)
        shown.add_row(
            part.name,
            _state(part),
            *("-" if number is None else str(number) for number in numbers),
            part.url or "",
            part.log,
        )
    return shown


def _state(part: PartRecord) -> Text:
    """The state of a process, and the age of its heartbeat if it has one."""
    if part.frozen and part.heartbeat_s is not None:
        return Text(f"frozen for {part.heartbeat_s:.0f} s", style="bold red")
    beat = "" if part.heartbeat_s is None else f", heartbeat {part.heartbeat_s:.0f} s ago"
    return Text(f"{part.state}{beat}", style=_COLOURS.get(part.state, "dim"))


def _step(step: StepRecord) -> Text:
    line = Text(f"{_MARKS.get(step.state, '·')} {step.name:<9}")
    if step.total:
        full = round(min(1.0, step.done / step.total) * _BAR)
        line.append("━" * full, style="green").append("━" * (_BAR - full), style="dim")
        line.append(f" {step.done:,}/{step.total:,}")
    line.append(f"  {step.seconds:.0f} s", style="dim")
    return line.append(f"  {step.note}" if step.note else "")


def _progress(progress: StackProgress) -> Text:
    line = Text(
        f"{progress.log_events:,} events in the log, {progress.lag:,} not yet applied, "
        f"{progress.archived_events:,} archived, {progress.events_per_s:,.0f}/s; "
        f"model {progress.model_version or 'none yet'}",
        style="bold",
    )
    for stall in progress.stalled:
        line.append(f"\nstalled: {stall}", style="bold red")
    return line

"""How fast a replay goes: as fast as it can, so many events a second, or event time faster than real time."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from afterclick.errors import AlreadyRunning, BadInput
from afterclick.io.home import ReplayControl, ReplayStatus

DAY_MS = 86_400_000
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPEED = re.compile(r"(\d+(?:\.\d+)?)(?:([smhdw])/s|x)")


class Pace(Protocol):
    """Says how many of the next events are due; in words by `str`."""

    def due(self, times_ms: NDArray[np.int64], running_s: float) -> int:
        """How many events at the front of `times_ms` (sorted) may go, after so many seconds of running."""

    def took(self, count: int) -> None:
        """So many events went."""

    def seconds_for(self, count: int, span_ms: int) -> float | None:
        """About how long that many events over that span of event time take; None if not known."""


class Unlimited:
    """Everything is due."""

    def __str__(self) -> str:
        return "max"

    def due(self, times_ms: NDArray[np.int64], running_s: float) -> int:
        return len(times_ms)

    def took(self, count: int) -> None:
        return

    def seconds_for(self, count: int, span_ms: int) -> float | None:
        return None


class Rate:
    """So many events a second."""

    def __init__(self, per_second: float) -> None:
        if not 0 < per_second <= 1e9:
            raise BadInput(f"rate {per_second:g}: give events per second, more than 0")
        self._per_second = per_second
        self._went = 0

    def __str__(self) -> str:
        return f"{self._per_second:g} events/s"

    def due(self, times_ms: NDArray[np.int64], running_s: float) -> int:
        return max(0, min(len(times_ms), int(running_s * self._per_second) - self._went))

    def took(self, count: int) -> None:
        self._went += count

    def seconds_for(self, count: int, span_ms: int) -> float | None:
        return count / self._per_second


class Speed:
    """Event time runs `factor` times faster than the clock, from the first event on."""

    def __init__(self, factor: float) -> None:
        if not 0 < factor <= 1e12:
            raise BadInput(f"speed {factor:g}: give more than 0")
        self._factor = factor
        self._origin_ms: float | None = None

    def __str__(self) -> str:
        for unit, seconds in reversed(_UNITS.items()):
            if self._factor >= seconds and unit != "s":
                return f"{self._factor / seconds:g}{unit}/s"
        return f"{self._factor:g}x"

    def due(self, times_ms: NDArray[np.int64], running_s: float) -> int:
        if not len(times_ms):
            return 0
        if self._origin_ms is None:
            self._origin_ms = float(times_ms[0]) - running_s * 1000 * self._factor
        reached = self._origin_ms + running_s * 1000 * self._factor
        return int(np.searchsorted(times_ms, reached, side="right"))

    def took(self, count: int) -> None:
        return

    def seconds_for(self, count: int, span_ms: int) -> float | None:
        return span_ms / 1000 / self._factor


def parse_pace(speed: str, rate: float | None) -> Pace:
    """The pace that `--speed` and `--rate` ask for. Raises BadInput, showing how a speed is written."""
    if rate is not None:
        if speed != "max":
            raise BadInput("give --speed or --rate, not both")
        return Rate(rate)
    if speed == "max":
        return Unlimited()
    match = _SPEED.fullmatch(speed.strip().lower())
    if not match:
        raise BadInput(f"speed {speed!r}: write 1h/s, 30m/s, 2d/s, 60x or max")
    return Speed(float(match[1]) * _UNITS[match[2] or "s"])


def spread_days(times_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Times to pace by: events known to the day only are spread over that day.

    Else all of a day would come at once. Event times themselves are not changed.
    """
    if not len(times_ms) or np.any(times_ms % DAY_MS):
        return times_ms
    _, first, counts = np.unique(times_ms, return_index=True, return_counts=True)
    within = np.arange(len(times_ms)) - np.repeat(first, counts)
    return np.asarray(times_ms + within * DAY_MS // np.repeat(counts, counts))


# --- progress: What a replay leaves on disk: how far it got, whether it may run, and how it goes.


@dataclass(frozen=True)
class ReplayFiles:
    """The files of replays in one home folder."""

    home: Path

    @property
    def folder(self) -> Path:
        return self.home / "replay"

    def next_row(self, key: str) -> int:
        """The first row not known to be delivered; 0 where nothing is known."""
        return int(_read(self.folder / "progress.json").get(key, {}).get("next_row", 0))

    def save_next_row(self, key: str, row: int, event_time_ms: int) -> None:
        """Keep how far everything is delivered."""
        progress = _read(self.folder / "progress.json")
        progress[key] = {"next_row": row, "event_time_ms": event_time_ms}
        _write(self.folder / "progress.json", progress)

    def shift_ms(self, fingerprint: str, proposed: int) -> int:
        """The shift of a dataset's rebased clock: the first one ever proposed, for ever."""
        shifts = _read(self.folder / "clock.json")
        if fingerprint not in shifts:
            shifts[fingerprint] = proposed
            _write(self.folder / "clock.json", shifts)
        return int(shifts[fingerprint])

    def known_shift_ms(self, fingerprint: str) -> int | None:
        """The shift of a dataset's rebased clock; None where no replay has chosen one."""
        shift = _read(self.folder / "clock.json").get(fingerprint)
        return None if shift is None else int(shift)

    def control(self) -> ReplayControl:
        """How the replay is asked to go."""
        return ReplayControl.read(self.home) or ReplayControl()

    def ask(self, control: ReplayControl) -> None:
        """Ask the running replay to pause, to go on, or to change its pace."""
        control.write(self.home)

    def save_status(self, status: ReplayStatus) -> None:
        """Publish the figures of this moment."""
        status.write(self.home)

    def status(self) -> ReplayStatus | None:
        """The last figures published, or None if no replay ever ran."""
        return ReplayStatus.read(self.home)

    @contextmanager
    def only_one(self) -> Iterator[None]:
        """Hold the right to replay from this home. Raises AlreadyRunning while another process has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyRunning(
                    f"a replay runs from {self.home} already; stop it, or watch it with "
                    "`afterclick ingest status`"
                ) from None
            yield

    def running(self) -> bool:
        """Whether a process replays from this home now."""
        try:
            with self.only_one():
                return False
        except AlreadyRunning:
            return True


def replay_files(home: Path) -> ReplayFiles:
    """The replay files of a home folder."""
    return ReplayFiles(home)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_bytes(orjson.dumps(content))
    staging.replace(path)

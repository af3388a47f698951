"""Speed of a replay, and the files that record its progress.

reads, writes  file  <home>/replay/progress.json  next row per dataset and cluster
                     <home>/replay/clock.json     time shift of the rebased clock per dataset
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from afterclick.arrays import Int64Array
from afterclick.errors import BadInput
from afterclick.io.files import file_lock, lock_owner, write_atomically

DAY_MS = 86_400_000
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPEED = re.compile(r"(\d+(?:\.\d+)?)(?:([smhdw])/s|x)")


class Pace:
    """Decides how many of the next events are due; `str` describes it. This one sends all."""

    def __str__(self) -> str:
        return "max"

    def due(self, times_ms: Int64Array, running_s: float) -> int:
        """Number of events at the front of `times_ms` (sorted) due after `running_s` seconds."""
        return len(times_ms)

    def count_sent(self, count: int) -> None:
        """Count `count` events as sent."""

    def seconds_for(self, count: int, span_ms: int) -> float | None:
        """Estimated duration of `count` events over `span_ms` of event time; None if unknown."""
        return None


class Rate(Pace):
    """A fixed number of events per second."""

    def __init__(self, per_second: float) -> None:
        if not 0 < per_second <= 1e9:
            raise BadInput(f"rate {per_second:g}: must be greater than 0 events per second")
        self._per_second = per_second
        self._sent = 0

    def __str__(self) -> str:
        return f"{self._per_second:g} events/s"

    def due(self, times_ms: Int64Array, running_s: float) -> int:
        return max(0, min(len(times_ms), int(running_s * self._per_second) - self._sent))

    def count_sent(self, count: int) -> None:
        self._sent += count

    def seconds_for(self, count: int, span_ms: int) -> float | None:
        return count / self._per_second


class Speed(Pace):
    """Event time runs `factor` times faster than the clock, starting at the first event."""

    def __init__(self, factor: float) -> None:
        if not 0 < factor <= 1e12:
            raise BadInput(f"speed {factor:g}: must be greater than 0")
        self._factor = factor
        self._origin_ms: float | None = None

    def __str__(self) -> str:
        for unit, seconds in reversed(_UNITS.items()):
            if self._factor >= seconds and unit != "s":
                return f"{self._factor / seconds:g}{unit}/s"
        return f"{self._factor:g}x"

    def due(self, times_ms: Int64Array, running_s: float) -> int:
        if not len(times_ms):
            return 0
        if self._origin_ms is None:
            self._origin_ms = float(times_ms[0]) - running_s * 1000 * self._factor
        reached = self._origin_ms + running_s * 1000 * self._factor
        return int(np.searchsorted(times_ms, reached, side="right"))

    def seconds_for(self, count: int, span_ms: int) -> float | None:
        return span_ms / 1000 / self._factor


def parse_pace(speed: str, rate: float | None) -> Pace:
    """Parse `--speed` and `--rate`. Raises BadInput with the accepted forms."""
    if rate is not None:
        if speed != "max":
            raise BadInput("--speed and --rate exclude each other: give one of them")
        return Rate(rate)
    if speed == "max":
        return Pace()
    match = _SPEED.fullmatch(speed.strip().lower())
    if not match:
        raise BadInput(f"speed {speed!r}: expected e.g. 1h/s, 30m/s, 2d/s, 60x or max")
    return Speed(float(match[1]) * _UNITS[match[2] or "s"])


def spread_days(times_ms: Int64Array) -> Int64Array:
    """Times used for pacing: events with day resolution are spread evenly over their day.

    Event times themselves do not change.
    """
    if not len(times_ms) or np.any(times_ms % DAY_MS):
        return times_ms
    _, first, counts = np.unique(times_ms, return_index=True, return_counts=True)
    within = np.arange(len(times_ms)) - np.repeat(first, counts)
    return np.asarray(times_ms + within * DAY_MS // np.repeat(counts, counts))


@dataclass(frozen=True)
class ReplayFiles:
    """Replay files of one home folder."""

    home: Path

    @property
    def folder(self) -> Path:
        return self.home / "replay"

    def next_row(self, key: str) -> int:
        """First row not known to be delivered; 0 without saved progress."""
        return int(_read(self.folder / "progress.json").get(key, {}).get("next_row", 0))

    def save_next_row(self, key: str, row: int, event_time_ms: int) -> None:
        """Save the delivered position."""
        progress = _read(self.folder / "progress.json")
        progress[key] = {"next_row": row, "event_time_ms": event_time_ms}
        write_atomically(self.folder / "progress.json", orjson.dumps(progress))

    def shift_ms(self, fingerprint: str, proposed: int) -> int:
        """Time shift of a dataset's rebased clock: the first proposal, kept permanently."""
        shifts = _read(self.folder / "clock.json")
        if fingerprint not in shifts:
            shifts[fingerprint] = proposed
            write_atomically(self.folder / "clock.json", orjson.dumps(shifts))
        return int(shifts[fingerprint])

    def known_shift_ms(self, fingerprint: str) -> int | None:
        """Time shift of a dataset's rebased clock; None before the first rebased replay."""
        shift = _read(self.folder / "clock.json").get(fingerprint)
        return None if shift is None else int(shift)

    def lock(self) -> AbstractContextManager[None]:
        """The replay lock of this home; entering raises AlreadyRunning if it is taken."""
        busy = (
            f"a replay is already running from {self.home}; stop it, or watch it with "
            "`afterclick ingest status`"
        )
        return file_lock(self.folder / "lock", busy=busy)

    def running(self) -> bool:
        """True while a process replays from this home."""
        return lock_owner(self.folder / "lock") is not None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}

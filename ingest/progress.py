"""What a replay leaves on disk: how far it got, whether it may run, and how it goes.

writes  file  <home>/replay/progress.json  next row per dataset and cluster; only after delivery reports
              <home>/replay/clock.json     shift per dataset of the rebased clock, chosen once
              <home>/replay/status.json    afterclick.io.home.ReplayStatus, several times a second
reads   file  <home>/replay/control.json   afterclick.io.home.ReplayControl, written by whoever steers it
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from afterclick.errors import AlreadyRunning
from afterclick.io.home import ReplayControl, ReplayStatus


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

"""Files that the processes of one home folder exchange: names and codecs.

<home>/replay/control.json  ReplayControl   written by the CLI and the console, read by the replay
<home>/replay/hold.json     ReplayHold      written by the console, once a second during a recount
<home>/replay/status.json   ReplayStatus    written by the replay, several times a second
<home>/retrain.json         TrainingStatus  written by a training, touched by the scheduler
<home>/last_training.json   training.workspace.LastTraining  written when the gate has decided
<home>/anchor.json          training.workspace.Anchor  written with a published model
<home>/stack.json           StackRecord     written by `afterclick up`, once a second

Files are replaced in one rename; a missing or invalid file reads as None.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from afterclick.io.files import write_atomically

RUNNING, PAUSED, DONE, STOPPED, FAILED = "running", "paused", "done", "stopped", "failed"
FRESH_S = 5.0
"""Age below which the writer of a file counts as running."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class HomeFile(_Record):
    """A file of the home folder."""

    @classmethod
    def path(cls, home: Path) -> Path:
        """Path of the file in a home folder."""
        raise NotImplementedError

    @classmethod
    def read(cls, home: Path) -> Self | None:
        """The file's content; None without a valid file."""
        try:
            return cls.model_validate_json(cls.path(home).read_bytes())
        except (OSError, ValidationError):
            return None

    @classmethod
    def seconds_since_write(cls, home: Path) -> float | None:
        """Seconds since the last write; None without a file."""
        try:
            return max(0.0, time.time() - cls.path(home).stat().st_mtime)
        except OSError:
            return None

    @classmethod
    def is_fresh(cls, home: Path) -> bool:
        """Whether the process that writes the file repeatedly is still running."""
        age = cls.seconds_since_write(home)
        return age is not None and age < FRESH_S

    def write(self, home: Path) -> None:
        write_atomically(self.path(home), self.model_dump_json())

    @classmethod
    def touch(cls, home: Path) -> None:
        """A heartbeat: mark the file as just written, if there is one."""
        with suppress(OSError):
            os.utime(cls.path(home))


class ReplayControl(HomeFile):
    """Requested state and pace of the replay; without a pace, the one it was started with."""

    state: Literal["running", "paused"] = "running"
    speed: str | None = None
    """Event time per second: 1h/s, 30m/s, 60x, or max."""
    rate: float | None = Field(None, gt=0)
    """Events per second, instead of a speed."""

    @classmethod
    def path(cls, home: Path) -> Path:
        return home / "replay" / "control.json"


class ReplayHold(HomeFile):
    """Pauses the replay while the file is fresh: until its writer removes it, ends or is killed."""

    by: str
    """The command that needs a quiet log."""

    @classmethod
    def path(cls, home: Path) -> Path:
        return home / "replay" / "hold.json"


class ReplayStatus(HomeFile):
    """Progress of a replay. Times in ms; `eta_s` is None while unknown."""

    state: str
    dataset: str
    sent: int
    delivered: int
    total: int
    rate: float
    event_time_ms: int
    shift_ms: int
    eta_s: float | None
    kafka_away: bool
    updated_ms: int
    pace: str = ""
    """The requested pace as text."""

    @classmethod
    def path(cls, home: Path) -> Path:
        return home / "replay" / "status.json"


class TrainingStatus(HomeFile):
    """State of training."""

    state: Literal["waiting", "training", "stopped"]
    since: str
    progress: str = ""
    last: str | None = None
    """Outcome of the last run: a version, or the reason for its failure."""

    @classmethod
    def path(cls, home: Path) -> Path:
        return home / "retrain.json"


class PartRecord(_Record):
    """One process of the stack."""

    name: str
    state: str
    pid: int | None
    port: int | None = None
    url: str | None = None
    restarts: int
    log: str = ""
    memory_mib: float | None = None
    """Resident memory, children included."""
    heartbeat_s: float | None = None
    """Seconds since its last heartbeat; None if it has none."""
    frozen: bool = False
    """Its last heartbeat is too long ago."""


class StepRecord(_Record):
    """One step of the demo: waiting, running, done, failed or skipped."""

    name: str
    state: str
    note: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0


class StackProgress(_Record):
    """Progress of the stack's pipeline."""

    log_events: int = 0
    """Records on the interaction topics."""
    applied_events: int = 0
    """Records applied to the state."""
    archived_events: int = 0
    """Records written to the event archive."""
    lag: int = 0
    """Records not yet applied."""
    events_per_s: float = 0.0
    """Applied since the last reading."""
    model_version: str | None = None
    stalled: tuple[str, ...] = ()
    """Partitions whose next record is not applied: position and duration."""


class StackRecord(HomeFile):
    """The stack of this home folder."""

    running: bool
    pid: int | None
    age_s: float = 0.0
    home: str = ""
    env: dict[str, str] = {}
    """Environment variables with which other processes connect to the stack."""
    parts: tuple[PartRecord, ...] = ()
    stages: tuple[StepRecord, ...] = ()
    milestones: dict[str, float] = {}
    """Seconds from the start of the command until something was reached for the first time."""
    figures: StackProgress = StackProgress()

    @classmethod
    def path(cls, home: Path) -> Path:
        return home / "stack.json"

    def part(self, name: str) -> PartRecord | None:
        """The process of this name."""
        return next((part for part in self.parts if part.name == name), None)

"""What the processes of one home folder tell one another in files: names and codecs.

<home>/replay/control.json  ReplayControl   written by whoever steers the replay, read by the replay
<home>/replay/status.json   ReplayStatus    written by the replay, several times a second
<home>/retrain.json         TrainingStatus  written by whatever trains
<home>/last_training.json   training.workspace.LastTraining  written when the gate has decided
<home>/stack.json           StackRecord     written by `afterclick up`, once a second

A file appears whole, by one rename; one that is missing or broken reads as None.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

RUNNING, PAUSED, DONE, STOPPED, FAILED = "running", "paused", "done", "stopped", "failed"
FRESH_S = 5.0
"""A process that lives has written its file within this time."""


class HomeFile(BaseModel):
    """A file of a home folder, whole or not there."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def path(cls, home: Path) -> Path:
        """Where the file lies in a home folder."""
        raise NotImplementedError

    @classmethod
    def read(cls, home: Path) -> Self | None:
        """What the file says; None where there is no valid one."""
        try:
            return cls.model_validate_json(cls.path(home).read_bytes())
        except (OSError, ValidationError):
            return None

    @classmethod
    def seconds_since_write(cls, home: Path) -> float | None:
        """Seconds since the file was written; None where there is none."""
        try:
            return max(0.0, time.time() - cls.path(home).stat().st_mtime)
        except OSError:
            return None

    @classmethod
    def is_fresh(cls, home: Path) -> bool:
        """Whether whoever writes the file again and again still does."""
        age = cls.seconds_since_write(home)
        return age is not None and age < FRESH_S

    def write(self, home: Path) -> None:
        path = self.path(home)
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f".{path.name}.{os.getpid()}")
        staging.write_text(self.model_dump_json())
        staging.replace(path)


class ReplayControl(HomeFile):
    """How the replay is asked to go. Without a pace: as it was started."""

    state: Literal["running", "paused"] = "running"
    speed: str | None = None
    """Event time per second: 1h/s, 30m/s, 60x, or max."""
    rate: float | None = Field(None, gt=0)
    """Events per second, in place of a speed."""

    @classmethod
    def path(cls, home: Path) -> Path:
        return home / "replay" / "control.json"


class ReplayStatus(HomeFile):
    """The figures of a replay at one moment. Times in ms; `eta_s` is None while nothing is known."""

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
    """The pace it was asked for, in words."""

    @classmethod
    def path(cls, home: Path) -> Path:
        return home / "replay" / "status.json"


class TrainingStatus(HomeFile):
    """What training is doing."""

    state: Literal["waiting", "training", "stopped"]
    since: str
    progress: str = ""
    last: str | None = None
    """How the last run ended: a version, or the reason of its failure."""

    @classmethod
    def path(cls, home: Path) -> Path:
        return home / "retrain.json"


class PartRecord(BaseModel):
    """One process of the stack."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    state: str
    pid: int | None
    port: int | None = None
    url: str | None = None
    restarts: int
    log: str = ""
    memory_mib: float | None = None
    """Resident memory, children included."""


class StepRecord(BaseModel):
    """One step of the demo: waiting, running, done, failed or skipped."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    state: str
    note: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0


class StackProgress(BaseModel):
    """How far the loop has got."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    log_events: int = 0
    """Records on the interaction topics."""
    applied_events: int = 0
    """Of these, applied to the state."""
    archived_events: int = 0
    """Of these, written to the Parquet log."""
    lag: int = 0
    """Records not yet applied."""
    events_per_s: float = 0.0
    """Applied since the last reading."""
    model_version: str | None = None


class StackRecord(HomeFile):
    """The stack that runs from this home."""

    running: bool
    pid: int | None
    age_s: float = 0.0
    home: str = ""
    env: dict[str, str] = {}
    """The variables that lead other processes to the stack."""
    parts: tuple[PartRecord, ...] = ()
    stages: tuple[StepRecord, ...] = ()
    figures: StackProgress = StackProgress()

    @classmethod
    def path(cls, home: Path) -> Path:
        return home / "stack.json"

    def part(self, name: str) -> PartRecord | None:
        """The part of this name."""
        return next((part for part in self.parts if part.name == name), None)

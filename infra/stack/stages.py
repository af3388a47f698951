"""What `up --replay` does once the parts run, stage by stage, for whoever shows it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stage:
    """One thing that is done once: waiting, running, done, failed or left out."""

    name: str
    state: str = "waiting"
    note: str = ""
    done: int = 0
    total: int = 0
    began: float = 0.0
    seconds: float = 0.0

    def begin(self, note: str = "") -> None:
        self.state, self.note, self.began = "running", note, time.monotonic()

    def end(self, note: str = "", state: str = "done") -> None:
        self.state, self.note = state, note or self.note
        self.seconds = time.monotonic() - self.began if self.began else 0.0

    @property
    def elapsed(self) -> float:
        """Seconds it has taken so far."""
        running = self.state == "running"
        return time.monotonic() - self.began if running else self.seconds

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "state": self.state,
            "note": self.note,
            "done": self.done,
            "total": self.total,
            "seconds": round(self.elapsed, 1),
        }


@dataclass
class Figures:
    """How far the loop has got, asked from the outside every two seconds."""

    log_events: int = 0
    """Records on the interaction topics."""
    applied_events: int = 0
    """Of these, taken into the state."""
    archived_events: int = 0
    """Of these, written to the Parquet log."""
    model_version: str | None = None
    events_per_s: float = 0.0
    errors: list[str] = field(default_factory=list)

    @property
    def lag(self) -> int:
        """Records not yet taken into the state."""
        return max(0, self.log_events - self.applied_events)

    def as_json(self) -> dict[str, Any]:
        return {
            "log_events": self.log_events,
            "applied_events": self.applied_events,
            "archived_events": self.archived_events,
            "lag": self.lag,
            "events_per_s": round(self.events_per_s, 1),
            "model_version": self.model_version,
        }

"""Hooks that fault tests use to disable a protection or to kill a worker. All off in operation."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from afterclick.errors import BadEvent
from afterclick.settings import StreamSettings

_KILL, _NO_DEAD_LETTERS = "between-steps:", "no-dead-letters"
_FREEZE, _FREEZE_UNWATCHED = "freeze:", "freeze-unwatched:"
_APPENDED, _KILL_JOINS = "archived:", "between-joins:"
_ARCHIVE, _ARCHIVE_UNWATCHED = "freeze-archive:", "freeze-archive-unwatched:"


@dataclass(frozen=True, slots=True)
class FaultPoints:
    """Picklable, part of `ApplyConfig`. Set by `stream.fence` and `stream.fault`."""

    fence: bool = True
    """False: start from Spark's checkpoint, apply replayed offsets again, ignore gaps."""
    fault: str | None = None

    @classmethod
    def of(cls, stream: StreamSettings) -> Self:
        return cls(stream.fence, stream.fault)

    def on_malformed(self, error: BadEvent) -> None:
        """With `no-dead-letters`: raise instead of writing a dead letter."""
        if self.fault == _NO_DEAD_LETTERS:
            raise error

    def between_steps(self, chunk: int) -> None:
        """With `between-steps:<n>`: SIGKILL this worker in its n-th chunk, after step 1."""
        if self.fault == f"{_KILL}{chunk}":
            os.kill(os.getpid(), signal.SIGKILL)

    def between_joins(self) -> None:
        """With `between-joins:<file>`: create the file and SIGKILL this worker, unless it exists.

        In a chunk of lists and reactions, after step 1.
        """
        kind, _, path = (self.fault or "").partition(":")
        if f"{kind}:" == _KILL_JOINS and not Path(path).exists():
            Path(path).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def on_event(self, user_id: str) -> None:
        """With `freeze:<user>`: wait at the user's events until killed."""
        if self.fault in (f"{_FREEZE}{user_id}", f"{_FREEZE_UNWATCHED}{user_id}"):
            threading.Event().wait()

    def on_archive(self) -> None:
        """With `freeze-archive:<file>`: create the file and wait until killed, unless it exists."""
        kind, _, path = (self.fault or "").partition(":")
        if f"{kind}:" in (_ARCHIVE, _ARCHIVE_UNWATCHED) and not Path(path).exists():
            Path(path).touch()
            threading.Event().wait()

    def after_append(self, commit: int) -> None:
        """With `archived:<n>`: SIGKILL this worker after its n-th append to the archive."""
        if self.fault == f"{_APPENDED}{commit}":
            os.kill(os.getpid(), signal.SIGKILL)

    @property
    def unwatched(self) -> bool:
        """With `no-dead-letters` and `…-unwatched:…`: stalls and failures are not noticed."""
        unwatched = (_NO_DEAD_LETTERS, _FREEZE_UNWATCHED, _ARCHIVE_UNWATCHED)
        return bool(self.fault and self.fault.startswith(unwatched))


NO_FAULTS = FaultPoints()

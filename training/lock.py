"""One training run at a time on this machine: a lock that ends with its process, however it ends.

So nobody has to guess from a clock whether its owner still lives. One that hangs is ended by the schedule
(training/schedule.py).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from afterclick.errors import AlreadyRunning

_NAME = "training.lock"
_LOOKS = 5
"""Times that a lock is tried for: `holder` may have it for an instant."""


@contextmanager
def exclusive(home: Path, what: str) -> Iterator[None]:
    """Hold `<home>/training.lock` for the time of a `with`. Raises AlreadyRunning, naming who holds it."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / _NAME).open("a+") as file:
        if not _take(file):
            raise AlreadyRunning(f"{_owner(file)} is running; wait for it")
        file.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(f"{what} (process {os.getpid()}, since {since})")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def holder(home: Path) -> str | None:
    """Who trains now, None where nobody does."""
    try:
        with (home / _NAME).open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _owner(file)
    except FileNotFoundError:
        pass
    return None


def _take(file: IO[str]) -> bool:
    for _ in range(_LOOKS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def _owner(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "a training run"

"""One training run at a time on this machine: a lock that ends with its process, however it ends.

So nobody has to guess from a clock whether its owner still lives. One that hangs is ended by the schedule
(training/schedule.py).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from afterclick.errors import AlreadyRunning


@contextmanager
def exclusive(home: Path, what: str) -> Iterator[None]:
    """Hold `<home>/training.lock` for the time of a `with`. Raises AlreadyRunning, naming who holds it."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "training.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise AlreadyRunning(
                f"{file.read().strip() or 'a training run'} is running; wait for it"
            ) from None
        file.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(f"{what} (process {os.getpid()}, since {since})")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)

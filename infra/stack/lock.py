"""One stack per home folder: a lock that goes when its holder goes, however it goes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from afterclick.errors import AlreadyRunning


@contextmanager
def only_stack(home: Path) -> Iterator[None]:
    """Hold the home folder for the time of a `with`. Raises AlreadyRunning when another stack has it."""
    home.mkdir(parents=True, exist_ok=True)
    with _file(home).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _running(home) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def require_no_stack(home: Path) -> None:
    """Raise AlreadyRunning when a stack has this home folder."""
    if holder(home):
        raise _running(home)


def holder(home: Path) -> int | None:
    """The process id of the stack that runs in this home folder; None when none does."""
    try:
        with _file(home).open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read() or 0) or None
    except FileNotFoundError:
        pass
    return None


def _file(home: Path) -> Path:
    return home / "stack.lock"


def _running(home: Path) -> AlreadyRunning:
    return AlreadyRunning(
        f"a stack runs already in {home} (pid {holder(home)}): see `afterclick status`, "
        "stop it with `afterclick down`"
    )

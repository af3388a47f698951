"""Files and folders that appear whole or not at all, and locks between processes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from afterclick.errors import AlreadyRunning

PRIVATE = 0o077
"""The umask of processes that write into a home folder: only their owner reads the files."""
_POLL_S = 0.02


def private_folder(folder: Path) -> None:
    """Create a folder that only its owner reads, or make one so; not one of another owner."""
    folder.mkdir(parents=True, exist_ok=True)
    state = folder.stat()
    if state.st_uid == os.getuid() and state.st_mode & PRIVATE:
        folder.chmod(state.st_mode & ~PRIVATE)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace the file in one rename; creates its folder. Only the owner reads the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged_file(path) as staging:
        staging.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it replaces `path` in one rename."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    staging = Path(name)
    try:
        yield staging
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder next to `target`; on success it gets that name in one rename.

    Every file in it is synced to disk before the rename. Raises FileExistsError where `target` is a
    folder that is not empty; after any error the temporary folder is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield staging
        for path in staging.rglob("*"):
            if path.is_file():
                _sync(path)
        try:
            staging.rename(target)
        except OSError as error:
            if not target.is_dir():
                raise
            raise FileExistsError(f"{target} exists") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _sync(target.parent)


@contextmanager
def file_lock(
    path: Path, owner: str = "", busy: str = "", timeout_s: float = 0.1
) -> Iterator[None]:
    """Hold the lock on `path`; the operating system releases it when the process ends.

    `owner` is written into the file for `lock_owner`. Raises AlreadyRunning(`busy`) where another
    process has the lock for longer than `timeout_s`; −1 waits without limit.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=timeout_s, poll_interval=_POLL_S)
    try:
        lock.acquire()
    except Timeout:
        raise AlreadyRunning(busy or f"{path} is locked by {lock_owner(path)}") from None
    try:
        path.write_text(owner)
        yield
    finally:
        path.write_text("")
        lock.release()


def lock_owner(path: Path) -> str | None:
    """The holder's `owner` text, maybe empty; None while the lock is free."""
    if not path.exists():
        return None
    from filelock import FileLock, Timeout

    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        return path.read_text()
    lock.release()
    return None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""The lease that keeps a second stream job away from the same state.

reads, writes  redis  lease
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import redis
import structlog

from afterclick.errors import StateLocked, Unavailable

log = structlog.get_logger()
_OWN: set[str] = set()
"""The owners that this process is, or was."""


@contextmanager
def held(client: redis.Redis, key: str, lease_s: float) -> Iterator[None]:
    """Hold the lease for the time of a `with`, renewed by a thread.

    A dead holder on this machine is replaced at once, one elsewhere once its lease has run out. Raises
    StateLocked where the holder lives.
    """
    owner = f"{socket.gethostname()}/{os.getpid()}/{uuid4().hex[:8]}"
    _OWN.add(owner)
    _take(client, key, owner, lease_s)
    stop = threading.Event()
    renewer = threading.Thread(target=_renew, args=(client, key, owner, lease_s, stop), daemon=True)
    renewer.start()
    try:
        yield
    finally:
        stop.set()
        renewer.join()
        _give_up(client, key, owner)


def _take(client: redis.Redis, key: str, owner: str, lease_s: float) -> None:
    deadline = time.monotonic() + lease_s + 1
    while True:
        holder = _call(client, key, owner, lease_s)
        if holder == owner:
            return
        lives = _lives(holder)
        if lives is False:
            _call(client, key, owner, lease_s, force=True)
            return
        if lives or time.monotonic() > deadline:
            raise StateLocked(f"another stream job ({holder}) writes this state; stop it first")
        time.sleep(0.2)


def _lives(holder: str) -> bool | None:
    """Whether the holder's process lives; None where this machine cannot know."""
    host, pid, _ = holder.split("/")
    if host != socket.gethostname():
        return None
    if int(pid) == os.getpid() and holder not in _OWN:
        return False  # in a container a restarted process gets the id of the one before it
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _renew(
    client: redis.Redis, key: str, owner: str, lease_s: float, stop: threading.Event
) -> None:
    while not stop.wait(lease_s / 3):
        try:
            holder = _call(client, key, owner, lease_s)
        except Unavailable as error:
            log.warning("lease not renewed", reason=str(error))
            continue
        if holder != owner:
            log.error("lease lost", to=holder)


def _give_up(client: redis.Redis, key: str, owner: str) -> None:
    try:
        _call(client, key, owner, 0)
    except Unavailable as error:
        log.warning("lease not given up", reason=str(error))


def _call(client: redis.Redis, key: str, owner: str, lease_s: float, force: bool = False) -> str:
    try:
        holder = client.fcall(
            "afterclick_lease", 1, key, owner, str(int(lease_s * 1000)), "1" if force else "0"
        )
    except redis.RedisError as error:
        raise Unavailable(f"Redis: {error}") from None
    return holder.decode() if isinstance(holder, bytes) else str(holder)

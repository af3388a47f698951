"""The lease by which one process at a time writes the state.

reads, writes  redis  lease, running

The functions of functions.lua compare the lease with the owner that each write names: a job that
lost its lease, because it was suspended or Redis was cleared, changes nothing any more.

Readiness: a job owns `lease` from its start on, and writes its owner to `running` while its queries
run. It is ready when both hold the same owner: `running_job`.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis
import structlog

from afterclick.errors import StateLocked, Unavailable
from afterclick.redis_keys import Keys
from streaming.positions import redis_errors

log = structlog.get_logger()

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Lease:
    """Where a lease is stored, and its owner: `host/pid/machine/start/token`."""

    key: str
    owner: str


NO_LEASE = Lease("", "")
"""Writes are not checked: only for tests and the controls of fault tests."""


@contextmanager
def hold_lease(client: redis.Redis, keys: Keys, lease_s: float) -> Iterator[Lease]:
    """Hold the lease on the state during a `with`, renewed by a thread.

    Replaces a dead process of this machine at once. Whether one on another machine is alive is not
    known, whatever its host name: it is replaced once its lease has expired. Raises StateLocked
    while another owner lives, and Unavailable.
    """
    pid = os.getpid()
    owner = (socket.gethostname(), str(pid), _machine(), _start_of(pid), uuid4().hex[:8])
    lease = Lease(keys.lease, "/".join(owner))
    _acquire(client, lease, lease_s)
    stop = threading.Event()
    renewal = threading.Thread(target=_renew, args=(client, lease, lease_s, stop), daemon=True)
    renewal.start()
    try:
        yield lease
    finally:
        stop.set()
        renewal.join()
        try:
            _call(client, lease, 0)
        except Unavailable as error:
            log.warning("lease not released", reason=str(error))


def mark_running(client: redis.Redis, keys: Keys, lease: Lease, lease_s: float) -> None:
    """Announce that the queries of the lease's owner run. Expires like the lease; call it often.

    Raises Unavailable.
    """
    with redis_errors():
        client.set(keys.running, lease.owner, px=int(lease_s * 1000))


def running_job(client: redis.Redis, keys: Keys) -> str | None:
    """Owner (`host/pid/…`) of the job whose queries run, if any. Raises Unavailable."""
    with redis_errors():
        owner: Any = client.get(keys.lease)
        running: Any = client.get(keys.running)
    return running.decode() if running is not None and running == owner else None


def check_lease(client: redis.Redis, lease: Lease) -> None:
    """Raise StateLocked if another owner holds the lease. Raises Unavailable."""
    with redis_errors():
        current: Any = client.get(lease.key)
    if current is not None and current.decode() != lease.owner:
        raise _taken(current.decode())


def renew_lease(client: redis.Redis, lease: Lease, lease_s: float) -> None:
    """Hold the lease from now on, also if it had expired. Raises StateLocked and Unavailable."""
    current = _call(client, lease, lease_s)
    if current != lease.owner:
        raise _taken(current)


def _taken(owner: str) -> StateLocked:
    return StateLocked(f"another stream job ({owner}) took the lease on this state")


def _acquire(client: redis.Redis, lease: Lease, lease_s: float) -> None:
    deadline = time.monotonic() + lease_s + 1
    while True:
        current = _call(client, lease, lease_s)
        if current == lease.owner:
            return
        alive = _is_alive(current)
        if alive is False:
            _call(client, lease, lease_s, force=True)
            return
        if alive or time.monotonic() > deadline:
            raise StateLocked(f"another stream job ({current}) writes this state; stop it first")
        time.sleep(0.2)


def _is_alive(owner: str) -> bool | None:
    """Whether the owner's process lives; None: unknown, as it runs on another machine."""
    _, pid, machine, start, _ = [*owner.split("/"), "", "", "", ""][:5]
    if not machine or machine != _machine():
        return None
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _start_of(int(pid)) in (start, "")  # another start: the id is that of a later process


def _machine() -> str:
    """The running kernel and the process ids that this process sees; empty where unknown.

    Other than a host name, no two machines or containers have it in common.
    """
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        return f"{_BOOT_ID.read_text().strip()}:{namespace}"
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty where unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def _renew(client: redis.Redis, lease: Lease, lease_s: float, stop: threading.Event) -> None:
    while not stop.wait(lease_s / 3):
        try:
            renew_lease(client, lease, lease_s)
        except Unavailable as error:
            log.warning("lease not renewed", reason=str(error))
        except StateLocked as error:
            log.error("lease lost", reason=str(error))


def _call(client: redis.Redis, lease: Lease, lease_s: float, *, force: bool = False) -> str:
    """Acquire, renew or (with 0 s) release the lease; its owner afterwards."""
    arguments = (lease.key, lease.owner, str(int(lease_s * 1000)), "1" if force else "0")
    with redis_errors():
        current = client.fcall("afterclick_lease", 1, *arguments)
    return current.decode() if isinstance(current, bytes) else str(current)

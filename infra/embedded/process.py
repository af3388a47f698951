"""Child processes that never outlive this one, with their output in a log file."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import psutil

from afterclick.errors import Unavailable

_PR_SET_PDEATHSIG = 1
_LOG_BYTES = 16 << 20


@dataclass
class Process:
    """A command that can be started, stopped and killed, again and again.

    It runs in its own session, so that Ctrl-C reaches only this process, which then stops it in order; and
    the kernel kills it when the thread that started it ends (Linux), so start it from the main thread.
    """

    name: str
    command: Sequence[str | Path]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    _popen: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _log_start: int = field(default=0, init=False, repr=False)

    @property
    def pid(self) -> int | None:
        """The process id, None while it has not been started."""
        return self._popen.pid if self._popen else None

    @property
    def returncode(self) -> int | None:
        """The exit code; None while it runs or was never started."""
        return self._popen.poll() if self._popen else None

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> None:
        """Start the command; its output is appended to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
            self.log.replace(self.log.with_suffix(".old.log"))
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._popen = subprocess.Popen(
                [str(part) for part in self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.env},
                start_new_session=True,
                preexec_fn=_death_wish(),
            )

    def wait_ready(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until `ready` says yes. Raises Unavailable when the process ends or the time is up."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if not self.running:
                raise Unavailable(
                    f"{self.name} ended with code {self.returncode}; see {self.log}\n{self.last_words()}"
                )
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{self.name} did not answer within {timeout_s:.0f} s; see {self.log}"
                )
            time.sleep(0.05)

    def stop(self, timeout_s: float = 8.0) -> None:
        """Ask it to end, then insist. Returns when it and all of its own children are gone."""
        if self._popen is None:
            return
        if self.running:
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout_s)
        self.kill()

    def terminate(self) -> None:
        """Ask it to end, and do not wait."""
        if self.running and self._popen is not None:
            with contextlib.suppress(ProcessLookupError):
                self._popen.terminate()

    def hold(self) -> None:
        """SIGSTOP: it is there and does nothing until `go_on`. Raises Unavailable where it does not run.

        Returns when all of its threads stand: on a busy machine they run on for a while after the signal.
        """
        os.waitid(os.P_PID, self._signal(signal.SIGSTOP), os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def go_on(self) -> None:
        """SIGCONT, after `hold`. Raises Unavailable where it does not run."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> int:
        """Its process id. Raises Unavailable where it does not run."""
        if self._popen is None or not self.running:
            raise Unavailable(f"{self.name} does not run; see {self.log}")
        self._popen.send_signal(number)
        return self._popen.pid

    def kill(self) -> None:
        """SIGKILL to the process and to everything it started, in whatever process group that is by now."""
        if self._popen is None:
            return
        for pid in _session(self._popen.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._popen.wait()

    def said(self, words: str) -> bool:
        """Whether the words stand in what it has written since its last start."""
        try:
            with self.log.open("rb") as log:
                log.seek(self._log_start)
                return words.encode() in log.read()
        except FileNotFoundError:
            return False

    def last_words(self, lines: int = 3) -> str:
        """The end of what it has written since its last start."""
        try:
            with self.log.open("rb") as log:
                log.seek(self._log_start)
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.strip().splitlines()[-lines:])


def _session(leader: int) -> list[int]:
    """Every process of a session, its leader first."""
    members = [leader]
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if pid != leader and os.getsid(pid) == leader:
                members.append(pid)
    return members


def _death_wish() -> Callable[[], None] | None:
    """What the child runs before the command: ask the kernel for SIGKILL when the parent is gone."""
    if sys.platform != "linux":
        return None
    prctl, parent = _libc().prctl, os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return ask


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)

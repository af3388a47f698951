"""Child processes that never outlive this one, with their output in a log file."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from afterclick.errors import NotRunning, Unavailable, redact
from afterclick.io.files import PRIVATE
from afterclick.io.libc import end_with_parent
from afterclick.settings import Settings

LOG_BYTES = 16 << 20
_TAIL_BYTES = 1 << 16
_DRAIN_S = 5.0
_SETTING = "AFTERCLICK_"


@dataclass
class Process:
    """A command that can be started, stopped and killed repeatedly.

    It runs in its own session, so that Ctrl-C reaches only this process, which then stops the child
    in order. On Linux the kernel kills it when the thread that started it ends: start it from the
    main thread. The child inherits the environment except AFTERCLICK_*: settings come from `env`.
    Only its owner reads the files that it writes.
    """

    name: str
    command: Sequence[str | Path]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    on_output: Callable[[str], None] | None = None
    """Receives each line of standard output in a thread; the log then has standard error only."""
    log_bytes: int = LOG_BYTES
    """Size from which `rotate_log` begins a new log."""
    _popen: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _reader: threading.Thread | None = field(default=None, init=False, repr=False)
    _log_start: int = field(default=0, init=False, repr=False)

    @property
    def pid(self) -> int | None:
        """The process id; None before the first start."""
        return self._popen.pid if self._popen else None

    @property
    def returncode(self) -> int | None:
        """The exit code; None while it runs and before the first start."""
        return self._popen.poll() if self._popen else None

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> None:
        """Start the command; its output is appended to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.rotate_log()
        piped = self.on_output is not None
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._popen = subprocess.Popen(
                [str(part) for part in self.command],
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else log,
                stderr=log if piped else subprocess.STDOUT,
                env=_inherited() | dict(self.env),
                start_new_session=True,
                preexec_fn=end_with_parent(signal.SIGKILL),
                umask=PRIVATE,
            )
        if piped:
            self._reader = threading.Thread(target=self._read, args=(self._popen,), daemon=True)
            self._reader.start()

    def rotate_log(self) -> None:
        """Begin a new log after `log_bytes`, and keep the last one: call it now and then.

        The log is copied and emptied, as the process has it open.
        """
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > self.log_bytes:
                shutil.copy(self.log, self.log.with_suffix(".old.log"))
                os.truncate(self.log, 0)
                self._log_start = 0

    def wait_ready(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until `ready` returns true. Raises Unavailable after the end or `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if not self.running:
                raise Unavailable(
                    f"{self.name} ended with code {self.returncode}; see {self.log}\n{self.tail()}"
                )
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{self.name} was not ready within {timeout_s:.0f} s; see {self.log}"
                )
            time.sleep(0.05)

    def wait(self) -> int:
        """Wait for the end of the process and of its output; the exit code."""
        if self._popen is None:
            raise NotRunning(f"{self.name} was not started")
        code = self._popen.wait()
        if self._reader:
            self._reader.join(_DRAIN_S)  # a grandchild may keep the pipe open
        return code

    def send(self, line: str) -> None:
        """Write a line to standard input; needs `on_output`. Raises NotRunning after the end."""
        if self._popen is None or self._popen.stdin is None:
            raise NotRunning(f"{self.name} reads no input")
        try:
            self._popen.stdin.write(line.encode() + b"\n")
            self._popen.stdin.flush()
        except (OSError, ValueError):
            raise NotRunning(f"{self.name} has ended") from None

    def stop(self, timeout_s: float = 8.0) -> None:
        """SIGTERM, then SIGKILL after `timeout_s`. Returns when all of its processes have ended."""
        if self._popen is None:
            return
        if self.running:
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout_s)
        self.kill()

    def terminate(self) -> None:
        """Send SIGTERM without waiting."""
        if self.running and self._popen is not None:
            with contextlib.suppress(ProcessLookupError):
                self._popen.terminate()

    def suspend(self) -> None:
        """SIGSTOP, until `resume`. Raises Unavailable if it does not run.

        Returns once all threads are stopped: on a busy machine they continue for a while after the
        signal.
        """
        os.waitid(os.P_PID, self._signal(signal.SIGSTOP), os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT, after `suspend`. Raises Unavailable if it does not run."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to the process and to every process of its session, in any process group."""
        if self._popen is None:
            return
        for pid in _session(self._popen.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._popen.wait()

    def log_contains(self, text: str) -> bool:
        """Whether the log has the text since the last start."""
        return text in self._logged()

    def tail(self, lines: int = 3) -> str:
        """The last lines of the log since the last start, without passwords."""
        return redact("\n".join(self._logged(_TAIL_BYTES).strip().splitlines()[-lines:]))

    def _logged(self, newest_bytes: int | None = None) -> str:
        try:
            with self.log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                first = size - newest_bytes if newest_bytes else 0
                log.seek(max(self._log_start, first))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def _signal(self, number: signal.Signals) -> int:
        """Send a signal; the process id. Raises Unavailable if it does not run."""
        if self._popen is None or not self.running:
            raise Unavailable(f"{self.name} does not run; see {self.log}")
        self._popen.send_signal(number)
        return self._popen.pid

    def _read(self, popen: subprocess.Popen[bytes]) -> None:
        assert popen.stdout is not None
        assert self.on_output is not None
        for line in popen.stdout:
            self.on_output(line.decode(errors="replace").rstrip("\n"))


def afterclick_command(
    settings: Settings,
    name: str,
    *arguments: str,
    on_output: Callable[[str], None] | None = None,
) -> Process:
    """An `afterclick` command with these settings; its log is `<home>/logs/<name>.log`."""
    env = settings.environment() | {
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "PYTHONUNBUFFERED": "1",
        "SPARK_LOCAL_IP": "127.0.0.1",
        "COLUMNS": "1000",
        "NO_COLOR": "1",
    }
    command = [sys.executable, "-m", "infra", *arguments]
    return Process(name, command, settings.home / "logs" / f"{name}.log", env, on_output)


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_SETTING)}


def _session(leader: int) -> list[int]:
    """Every process of a session, its leader first."""
    members = [leader]
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if pid != leader and os.getsid(pid) == leader:
                members.append(pid)
    return members

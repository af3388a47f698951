"""Several processes that serve one port: the parent binds it, starts them and starts them again.

The parent imports and compiles what all of them need, then forks: its pages are shared. It starts
no thread and opens no connection, so that it can fork again whenever a worker has died.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, Final, cast

import structlog

from afterclick.errors import AfterclickError, Unavailable
from afterclick.features import warm_up
from afterclick.io.libc import end_with_parent
from serving.peers import Peers, socket_of

log = structlog.get_logger()
STOP_S: Final = 15.0
"""How long workers may take to end before they are killed: they drain and flush for seconds."""
HEALTHY_S: Final = 60.0
"""A worker that ran for longer is started again at once."""
MAX_PAUSE_S: Final = 30.0
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_POLL_S = 0.5
"""Signals take effect within this time."""


@dataclass
class _Worker:
    """One process after the other."""

    number: int
    process: ForkProcess | None = None
    started: float = 0.0
    failures: int = 0
    start_at: float = field(default_factory=time.monotonic)

    def ended(self) -> None:
        """Set when to start it again: after 0.5, 1, 2, … 30 seconds."""
        now = time.monotonic()
        self.failures = 1 if now - self.started > HEALTHY_S else self.failures + 1
        self.process = None
        self.start_at = now + min(MAX_PAUSE_S, 0.25 * 2.0**self.failures)


class WorkerPool:
    """Keeps `count` workers running."""

    def __init__(
        self, count: int, listener: socket.socket, serve: Callable[[Peers, socket.socket], None]
    ) -> None:
        """`serve` is one worker: it runs until SIGTERM or SIGINT. `listener` keeps the port."""
        self._listener, self._serve = listener, serve
        self._workers = [_Worker(number) for number in range(count)]
        self._folder = Path()
        self._stopping = False
        self._served = False
        """A worker has started."""

    def run(self) -> None:
        """Run the workers until SIGTERM or SIGINT; none is left on return.

        A worker that ends is started again. Raises Unavailable if one ends before any has started.
        """
        preload()
        with tempfile.TemporaryDirectory(prefix="afterclick-workers-") as folder, self._signals():
            self._folder = Path(folder)
            try:
                while not self._stopping:
                    self._start_due()
                    self._await_end()
            finally:
                self._end_all()

    def _start_due(self) -> None:
        for worker in self._workers:
            if worker.process is None and worker.start_at <= time.monotonic():
                worker.process, worker.started = self._fork(worker), time.monotonic()

    def _fork(self, worker: _Worker) -> ForkProcess:
        count = len(self._workers)
        peers = Peers(worker.number, count, self._folder, replaces_another=worker.failures > 0)
        end = end_with_parent(signal.SIGTERM)

        def work() -> None:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            if end is not None:
                end()
            try:
                self._serve(peers, self._listener)
            except AfterclickError as error:
                log.error(str(error))
                sys.exit(error.exit_code)

        process = multiprocessing.get_context("fork").Process(
            target=work, name=f"worker-{worker.number}", daemon=True
        )
        # a signal before `work` has begun must not reach the parent's handlers in the child
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        return process

    def _await_end(self) -> None:
        """Wait until a worker ends, for `_POLL_S` at most, and plan its next start."""
        running = {w.process.sentinel: w for w in self._workers if w.process is not None}
        if not running:
            time.sleep(_POLL_S)
        for sentinel in wait(list(running), _POLL_S):
            self._on_end(running[cast(int, sentinel)])

    def _on_end(self, worker: _Worker) -> None:
        process = worker.process
        assert process is not None
        process.join()
        if self._stopping:
            return
        ended = f"worker {worker.number} ended with code {process.exitcode}"
        self._served |= any(map(self._has_started, self._workers))
        if not self._served:
            raise Unavailable(f"{ended} before it served; its messages above give the reason")
        socket_of(self._folder, worker.number).unlink(missing_ok=True)
        worker.ended()
        log.error(f"{ended}; starting it again", pid=process.pid)

    def _has_started(self, worker: _Worker) -> bool:
        return socket_of(self._folder, worker.number).exists()

    def _end_all(self) -> None:
        """SIGTERM to all, SIGKILL to those that do not end or have not started to serve."""
        self._listener.close()
        running = [(each, each.process) for each in self._workers if each.process is not None]
        for worker, process in running:
            process.terminate() if self._has_started(worker) else process.kill()
        deadline = time.monotonic() + STOP_S
        for worker, process in running:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                log.error(f"worker {worker.number} does not end; killing it", pid=process.pid)
                process.kill()
                process.join()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._stop) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, *_: Any) -> None:
        self._stopping = True


def preload() -> None:
    """Load what every worker needs before the fork."""
    import faiss  # noqa: F401

    warm_up()
    gc.collect()
    gc.freeze()  # a collection in a worker would write to the shared pages

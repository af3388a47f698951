"""Start the parts, keep them running, stop them in order, and leave nothing behind.

Everything runs in the main thread's event loop: the kernel ends a child with the thread that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import structlog

from afterclick.errors import Unavailable
from infra.embedded.process import Process
from infra.stack.layout import Layout
from infra.stack.part import Part, State
from infra.stack.stages import Stage

log = structlog.get_logger()

_POLL_S = 0.1
_GRACE_S = 5.0
_SERVERS_GRACE_S = 3.0

Note = Callable[[str], None]


@dataclass
class Stack:
    """A running stack. `note` is told each thing worth a line."""

    layout: Layout
    servers: list[Part]
    applications: list[Part]
    note: Note
    stages: list[Stage] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[Process] = field(default_factory=list)

    @property
    def parts(self) -> list[Part]:
        return [*self.servers, *self.applications]

    @property
    def age(self) -> float:
        """Seconds since the stack was started."""
        return time.monotonic() - self.began

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    async def run(
        self, between: Callable[[], None], *beside: Callable[[Stack], Coroutine[Any, Any, None]]
    ) -> None:
        """Run until SIGINT, SIGTERM or SIGHUP. `between` runs once Kafka and Valkey answer, then `beside`.

        Raises Unavailable when Kafka or Valkey does not come up. Every process is gone when this returns.
        """
        try:
            with self._signals():
                await self._until_stop(self._run(between, beside))
        finally:
            self.shut_down()

    async def task(self, name: str, process: Process) -> None:
        """Run a command that ends by itself. Raises Unavailable with its last words when it fails."""
        self._tasks.append(process)
        process.start()
        while process.running:
            await asyncio.sleep(_POLL_S)
        self._tasks.remove(process)
        if process.returncode and not self.stopping:
            raise Unavailable(
                f"{name} failed with code {process.returncode} (see {process.log}): {process.tail()}"
            )

    def stop(self) -> None:
        """Ask for the end."""
        self._stop.set()

    def shut_down(self) -> None:
        """End everything: first what uses the servers, then the servers; what does not go is killed."""
        self.note("stopping")
        _end([*self._tasks, *(part.process for part in self.applications)], _GRACE_S)
        _end([part.process for part in self.servers], _SERVERS_GRACE_S)
        for part in self.parts:
            part.state = State.STOPPED
        self.note("stopped, nothing left running")

    async def _run(
        self,
        between: Callable[[], None],
        beside: tuple[Callable[[Stack], Coroutine[Any, Any, None]], ...],
    ) -> None:
        async with asyncio.TaskGroup() as group:
            for part in self.servers:
                group.create_task(self._keep(part))
            await self._all_ready(self.servers)
            await asyncio.to_thread(between)
            for part in self.applications:
                group.create_task(self._keep(part))
            for work in beside:
                group.create_task(work(self))

    async def _keep(self, part: Part) -> None:
        """Start the part, and again whenever it ends."""
        while not self.stopping:
            await asyncio.to_thread(part.prepare)
            part.launch()
            await self._watch(part)
            if self.stopping:
                return
            code = part.process.returncode
            if part.essential and part.state is State.STARTING:
                raise Unavailable(
                    f"{part.name} ended with code {code}; see {part.process.log}\n{part.process.tail()}"
                )
            part.process.kill()  # what it may have left behind
            pause = part.pause_after_crash()
            self.note(
                f"{part.name} ended with code {code}; again in {pause:.1f} s (log: {part.process.log})"
            )
            await asyncio.sleep(pause)

    async def _watch(self, part: Part) -> None:
        """Wait until the part ends; meanwhile notice when it is ready."""
        started, warned = time.monotonic(), False
        while part.process.running:
            if part.state is State.STARTING:
                if await asyncio.to_thread(part.ready):
                    part.state = State.READY
                    self.note(f"{part.name} ready" + (f" at {part.url}" if part.url else ""))
                elif not warned and time.monotonic() - started > part.ready_within_s:
                    warned = True
                    self.note(f"{part.name} does not answer yet; see {part.process.log}")
            await asyncio.sleep(_POLL_S)

    async def _all_ready(self, parts: list[Part]) -> None:
        while not all(part.state is State.READY for part in parts):
            await asyncio.sleep(_POLL_S)

    async def _until_stop(self, work: Awaitable[None]) -> None:
        """Run the work until it fails or a stop is asked for."""
        running = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not running.done():
            running.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await running
        except BaseExceptionGroup as group:
            raise _first(group) from None

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in signals:
            loop.add_signal_handler(number, self.stop)
        yield
        # from here on a second Ctrl-C must not interrupt the shutdown
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


def _end(processes: list[Process], grace_s: float) -> None:
    """Ask all of them at once, wait, kill the rest."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + grace_s
    while any(process.running for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in processes:
        process.kill()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure in a group, and in the groups in it."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error

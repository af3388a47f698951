"""Start the services, keep them running, stop them in order, and leave no process behind.

Everything runs in the event loop of the main thread: the kernel ends a child with the thread that
started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from afterclick.errors import Unavailable
from infra.embedded.process import Process
from infra.stack.services import ManagedService, State

_POLL_S = 0.1
GRACE_S = 5.0
"""How long commands and applications may take to end."""
SERVERS_GRACE_S = 3.0
"""How long Kafka and Valkey may take to end."""

Note = Callable[[str], None]
Task = Callable[[], Coroutine[Any, Any, None]]


@dataclass
class Supervisor:
    """Runs servers, then the applications that need them. `note` receives each message."""

    servers: list[ManagedService]
    applications: list[ManagedService]
    note: Note
    began: float = field(default_factory=time.monotonic)
    milestones: dict[str, float] = field(default_factory=dict)
    """What was reached for the first time, and the seconds since the start."""
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _commands: list[Process] = field(default_factory=list)

    @property
    def services(self) -> list[ManagedService]:
        return [*self.servers, *self.applications]

    @property
    def age(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def reached(self, what: str) -> None:
        """Add a milestone."""
        self.milestones.setdefault(what, round(self.age, 1))

    async def run(self, between: Callable[[], None], *tasks: Task) -> None:
        """Run until SIGINT, SIGTERM or SIGHUP; once the servers answer, `between`, then `tasks`.

        Raises Unavailable if an essential service does not start. Ends every process.
        """
        try:
            with self._signals():
                await self._until_stop(self._run(between, tasks))
        finally:
            self.shut_down()

    async def command(self, process: Process) -> None:
        """Run a command to its end. Raises Unavailable with the end of its log if it fails."""
        self._commands.append(process)
        process.start()
        while process.running:
            process.rotate_log()
            await asyncio.sleep(_POLL_S)
        self._commands.remove(process)
        code = process.wait()
        if code and not self.stopping:
            raise Unavailable(
                f"{process.name} failed with code {code} (see {process.log}): {process.tail()}"
            )

    def stop(self) -> None:
        """Request the end."""
        self._stop.set()

    def shut_down(self) -> None:
        """End everything: the applications, then the servers; SIGKILL after a grace period."""
        self.note("stopping")
        _end([*self._commands, *(service.process for service in self.applications)], GRACE_S)
        _end([service.process for service in self.servers], SERVERS_GRACE_S)
        for service in self.services:
            service.state = State.STOPPED
        self.note("stopped: every process has ended")

    async def _run(self, between: Callable[[], None], tasks: tuple[Task, ...]) -> None:
        async with asyncio.TaskGroup() as group:
            for service in self.servers:
                group.create_task(self._keep(service))
            while not all(service.state is State.READY for service in self.servers):
                await asyncio.sleep(_POLL_S)
            await asyncio.to_thread(between)
            for service in self.applications:
                group.create_task(self._keep(service))
            for task in tasks:
                group.create_task(task())

    async def _keep(self, service: ManagedService) -> None:
        """Start the service, and restart it whenever it ends."""
        process = service.process
        while not self.stopping:
            await asyncio.to_thread(service.prepare)
            service.launch()
            await self._watch(service)
            if self.stopping:
                return
            ended = f"{service.name} ended with code {process.returncode}"
            if service.essential and service.state is State.STARTING:
                raise Unavailable(f"{ended}; see {process.log}\n{process.tail()}")
            process.kill()  # children it may have left
            pause = service.pause_after_crash()
            self.note(f"{ended}; restart in {pause:.1f} s (log: {process.log})")
            await asyncio.sleep(pause)

    async def _watch(self, service: ManagedService) -> None:
        """Wait until the service ends; note when it becomes ready."""
        started, warned, frozen = time.monotonic(), False, False
        while service.process.running:
            service.process.rotate_log()
            if service.frozen is not frozen:
                frozen = not frozen
                state = f"is frozen; see {service.process.log}" if frozen else "goes on"
                self.note(f"{service.name} {state}")
            if service.state is State.STARTING:
                if await asyncio.to_thread(service.ready):
                    service.state = State.READY
                    self.reached(f"{service.name} ready")
                    self.note(
                        f"{service.name} ready" + (f" at {service.url}" if service.url else "")
                    )
                elif not warned and time.monotonic() - started > service.warn_after_s:
                    warned = True
                    self.note(f"{service.name} is not ready yet; see {service.process.log}")
            await asyncio.sleep(_POLL_S)

    async def _until_stop(self, work: Awaitable[None]) -> None:
        """Run the work until it fails or a stop is requested."""
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
        # a second Ctrl-C must not interrupt the shutdown
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


def _end(processes: list[Process], grace_s: float) -> None:
    """SIGTERM to all, wait, SIGKILL to the rest."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + grace_s
    while any(process.running for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in processes:
        process.kill()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure of a group and its nested groups."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error

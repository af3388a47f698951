"""`afterclick` commands that the console runs as child processes; they end with the console.

runs  `afterclick train`, `models`, `reconcile`; `afterclick simulate --steered`
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
import structlog

from afterclick.errors import AlreadyRunning, NotRunning
from afterclick.settings import Settings
from infra.embedded.process import Process, afterclick_command

log = structlog.get_logger()
MAX_LINE = 400
POLL_S = 0.1
STOP_S = 5.0
ROUNDS = 1_000_000
"""Rounds of visits of a simulation: it runs until it is stopped."""
Json = dict[str, Any]
Hook = Callable[[], None]


@dataclass(eq=False)
class Job:
    """A command that ends by itself and prints one JSON object as its last line."""

    name: str
    began: float = field(default_factory=time.time)
    state: Literal["running", "done", "failed"] = "running"
    answer: Json | None = None
    error: str | None = None
    ended: float | None = None
    process: Process | None = field(default=None, repr=False)
    _last_line: str = field(default="", repr=False)

    @property
    def progress(self) -> str:
        """The last line of the command's log."""
        return self.process.tail(1).strip()[:MAX_LINE] if self.process else ""

    def on_output(self, line: str) -> None:
        self._last_line = line.strip() or self._last_line

    def end(self, code: int) -> None:
        """Set the outcome. The answer is the last line of output, also of a command that failed."""
        with contextlib.suppress(orjson.JSONDecodeError):
            answer = orjson.loads(self._last_line)
            self.answer = answer if isinstance(answer, dict) else None
        if code and self.answer is None:
            self.error = self.error or self.progress or f"{self.name} ended with code {code}"
        self.state = "failed" if code else "done"
        self.ended = time.time()

    def as_json(self) -> Json:
        return {
            "name": self.name,
            "state": self.state,
            "progress": self.progress,
            "answer": self.answer,
            "error": self.error,
            "ended": self.ended,
            "seconds": round((self.ended or time.time()) - self.began, 1),
        }


class Jobs:
    """The newest job of each name; one of a name runs at a time. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(
        self, name: str, *arguments: str, before: Hook | None = None, after: Hook | None = None
    ) -> Job:
        """Run a command with hooks around it. Raises AlreadyRunning."""
        newest = self._jobs.get(name)
        if newest is not None and newest.state == "running":
            raise AlreadyRunning(f"{name} is running: wait for it")
        job = self._jobs[name] = Job(name)
        task = asyncio.create_task(self._run(job, arguments, before, after))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    def as_json(self) -> dict[str, Json]:
        return {name: job.as_json() for name, job in self._jobs.items()}

    async def stop(self) -> None:
        """End every running command."""
        for job in self._jobs.values():
            if job.process is not None:
                await asyncio.to_thread(job.process.stop, STOP_S)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(
        self, job: Job, arguments: tuple[str, ...], before: Hook | None, after: Hook | None
    ) -> None:
        code = 1
        try:
            if before:
                before()
            code = await self._process(job, arguments)
        except Exception as error:  # the edge of a job: its state has the error
            log.exception("the job failed", job=job.name)
            job.error = str(error)
        finally:
            if after:
                after()
            job.end(code)

    async def _process(self, job: Job, arguments: tuple[str, ...]) -> int:
        name = f"console-{job.name}"
        job.process = afterclick_command(self._settings, name, *arguments, on_output=job.on_output)
        job.process.start()
        while job.process.running:
            job.process.rotate_log()
            await asyncio.sleep(POLL_S)
        return await asyncio.to_thread(job.process.wait)


class SimulationJob:
    """At most one run of the simulator. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: Process | None = None
        self._plan: Json = {}
        self._figures: Json = {}
        self._runs = 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int | None:
        """The process id of the newest run."""
        return self._process.pid if self._process else None

    def start(self, shoppers: int, pause_s: float, drift: float, hot: list[str]) -> None:
        """Start `shoppers` simulated users. Raises AlreadyRunning."""
        if self.running:
            raise AlreadyRunning("the simulation is running: stop it first")
        self._runs += 1
        self._plan = {"shoppers": shoppers, "pause_s": pause_s, "drift": drift, "hot": hot}
        self._figures = {}
        options = {
            "--shoppers": shoppers,
            "--visits": ROUNDS,
            "--pause": pause_s,
            "--drift": drift,
            "--seed": self._runs,
            "--api-url": self._settings.serving.url,
        }
        arguments = [word for name, value in options.items() for word in (name, str(value))]
        arguments += [word for item_id in hot for word in ("--hot", item_id)]
        self._process = afterclick_command(
            self._settings,
            "console-simulation",
            "simulate",
            "--steered",
            *arguments,
            on_output=self._on_output,
        )
        self._process.start()

    def steer(self, drift: float | None = None, hot: list[str] | None = None) -> None:
        """Change taste drift or hot items from the next visit on. Raises NotRunning."""
        given = {"drift": drift, "hot": hot}
        changes = {name: value for name, value in given.items() if value is not None}
        self._send(changes)
        self._plan |= changes

    def hold(self, held: bool) -> None:
        """Start no visit while held. Does nothing if no simulation runs."""
        if self.running:
            self._send({"held": held})

    def stop(self) -> None:
        """End the run, if there is one. Blocks for seconds."""
        if self._process is not None:
            self._process.stop(STOP_S)

    def as_json(self) -> Json:
        """The state of the current or the last run."""
        return {
            "running": self.running,
            "plan": self._plan,
            "figures": self._figures,
            "said": self._process.tail(1)[:MAX_LINE] if self._process else "",
        }

    def _send(self, control: Json) -> None:
        if self._process is None or not self.running:
            raise NotRunning("no simulation is running: start one first")
        self._process.send(orjson.dumps(control).decode())

    def _on_output(self, line: str) -> None:
        with contextlib.suppress(orjson.JSONDecodeError):
            self._figures = orjson.loads(line)

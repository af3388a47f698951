"""`afterclick` commands run as children of the API: an administrator starts them, they end with the API.

What needs Spark, MLflow or a Kafka client of its own is never imported here; it runs in its own process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
import structlog

from afterclick.arrays import Json
from afterclick.errors import AlreadyRunning, NotRunning

log = structlog.get_logger()
GRACE_S = 5.0
LAST_WORDS = 400


class Child:
    """One running command. Its lines come to `on_line` from a thread; `tell` writes to its standard input."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        on_line: Callable[[str, str], None],
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "infra", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={
                **os.environ,
                **environment,
                "PYTHONUNBUFFERED": "1",
                "COLUMNS": "1000",
                "NO_COLOR": "1",
            },
        )
        self._readers = [
            threading.Thread(target=self._read, args=(name, stream, on_line), daemon=True)
            for name, stream in (("out", self._process.stdout), ("err", self._process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def tell(self, line: str) -> None:
        """Write a line to its standard input. Raises NotRunning where it has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            raise NotRunning("it has ended") from None

    def wait(self) -> int:
        """Its exit code, once it has ended and everything it said was read. Blocks."""
        code = self._process.wait()
        for reader in self._readers:
            reader.join(GRACE_S)
        return code

    def stop(self) -> None:
        """RecommendationRequest it to end, then insist. Blocks for seconds."""
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except OSError:
                log.debug("it had ended")
        self._process.terminate()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self, name: str, stream: Any, on_line: Callable[[str, str], None]) -> None:
        for line in stream:
            on_line(name, line.rstrip("\n"))


@dataclass(eq=False)
class Job:
    """A command that ends by itself with one JSON object, and how far it is."""

    name: str
    began: float
    state: Literal["running", "done", "failed"] = "running"
    progress: str = ""
    answer: Json | None = None
    error: str | None = None
    ended: float | None = None
    child: Child | None = field(default=None, repr=False)
    _out: str = field(default="", repr=False)

    def hear(self, name: str, line: str) -> None:
        """Take a line of its output."""
        if not line.strip():
            return
        if name == "err":
            self.progress = line.strip()[:LAST_WORDS]
        else:
            self._out = line

    def end(self, code: int) -> None:
        """It has ended; the last line of its output is the answer, also of one that says no."""
        try:
            answer = orjson.loads(self._out)
        except orjson.JSONDecodeError:
            answer = None
        self.answer = answer if isinstance(answer, dict) else None
        if code and self.answer is None:
            self.error = self.progress or f"it ended with code {code}"
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
    """The newest job of each name; of a name only one runs."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(
        self,
        name: str,
        *arguments: str,
        before: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
    ) -> Job:
        """Run a command; `before` and `after` run around it. Raises AlreadyRunning."""
        with self._lock:
            known = self._jobs.get(name)
            if known is not None and known.state == "running":
                raise AlreadyRunning(f"{name} runs already; wait for it")
            job = self._jobs[name] = Job(name, time.time())
        threading.Thread(
            target=self._run, args=(job, arguments, before, after), name=f"job-{name}", daemon=True
        ).start()
        return job

    def get(self, name: str) -> Job | None:
        return self._jobs.get(name)

    def stop(self) -> None:
        """End whatever runs. Blocks for seconds."""
        for job in list(self._jobs.values()):
            if job.child is not None and job.child.running:
                job.child.stop()

    def as_json(self) -> dict[str, Json]:
        return {name: job.as_json() for name, job in self._jobs.items()}

    def _run(
        self,
        job: Job,
        arguments: Sequence[str],
        before: Callable[[], None],
        after: Callable[[], None],
    ) -> None:
        try:
            before()
            job.child = Child(arguments, self._environment, job.hear)
            code = job.child.wait()
        except Exception as error:  # the edge of a thread: the job says what went wrong
            log.exception("a job could not run", job=job.name)
            job.progress, code = str(error), 1
        after()
        job.end(code)

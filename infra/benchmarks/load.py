"""Load on an HTTP server: at a fixed rate whatever the server does (open loop), or as fast as it answers.

In the open loop a request's latency counts from the moment it was due, so a server that stalls pays for
every request that should have been sent meanwhile (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

CONNECTIONS = 512
"""Most connections of the open loop; the server's listen queue is longer."""


@dataclass(frozen=True, slots=True)
class Call:
    """A GET and how to tell whether its answer is right: `check` returns what is wrong, or None."""

    raw: bytes
    check: Callable[[bytes], str | None]


@dataclass
class Outcome:
    """What one run found."""

    seconds: float
    latencies_ms: NDArray[np.float64]
    late_ms: NDArray[np.float64]
    """How late the load itself was to send: a busy machine's own share of the latencies."""
    errors: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies_ms) / self.seconds

    def percentile(self, q: float) -> float:
        return (
            float(np.percentile(self.latencies_ms, q)) if len(self.latencies_ms) else float("nan")
        )


@dataclass(frozen=True, slots=True)
class _Answer:
    call: Call
    latency_s: float
    late_s: float
    answer: bytes | str
    """The whole response, or what went wrong."""

    def problem(self) -> str | None:
        if isinstance(self.answer, str):
            return self.answer
        if not self.answer.startswith(b"HTTP/1.1 200 "):
            return self.answer[:200].decode(errors="replace")
        return self.call.check(self.answer[self.answer.find(b"\r\n\r\n") + 4 :])


class _Client(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = b""
        self._wanted = -1
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, raw: bytes) -> asyncio.Future[bytes]:
        assert self.transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(raw)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._wanted < 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            at = self._buffer.find(b"content-length: ") + 16
            self._wanted = end + 4 + int(self._buffer[at : self._buffer.find(b"\r\n", at)])
        if len(self._buffer) >= self._wanted:
            answer, self._buffer, self._wanted = self._buffer, b"", -1
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("the server closed the connection"))


class Pool:
    """Connections that are free, and new ones up to a bound."""

    def __init__(self, host: str, port: int, most: int) -> None:
        self._host, self._port = host, port
        self._free: deque[_Client] = deque()
        self._slots = asyncio.Semaphore(most)

    async def call(self, raw: bytes) -> bytes:
        """The whole response to a request. Raises OSError."""
        async with self._slots:
            client = self._idle() or await self._connect()
            answer = await client.send(raw)
            if client.transport is not None:
                self._free.append(client)
            return answer

    def _idle(self) -> _Client | None:
        """A free connection that the server has not closed meanwhile."""
        while self._free:
            client = self._free.pop()
            if client.transport is not None:
                return client
        return None

    async def _connect(self) -> _Client:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(_Client, self._host, self._port)
        return client

    def close(self) -> None:
        for client in self._free:
            if client.transport is not None:
                client.transport.abort()


def get(path: str, host: str) -> bytes:
    """The bytes of a GET."""
    return f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode()


def post(path: str, host: str, body: bytes) -> bytes:
    """The bytes of a POST of JSON."""
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def json_body(answer: bytes, *statuses: int) -> Any:
    """The JSON of a whole response. Raises OSError where its status is none of `statuses`."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if int(head[9:12]) not in statuses:
        raise OSError(answer[:200].decode(errors="replace"))
    return orjson.loads(body)


async def open_loop(
    host: str, port: int, calls: Sequence[Call], rate: float, stop: Event | None = None
) -> Outcome:
    """Send `calls` at `rate` per second on average, at random (Poisson) moments; or until `stop`."""
    gaps = np.random.default_rng(1).exponential(1 / rate, len(calls))
    due = np.cumsum(gaps) + time.perf_counter() + 0.2
    pool = Pool(host, port, CONNECTIONS)
    answers: list[_Answer] = []

    async def one(call: Call, moment: float) -> None:
        sent = time.perf_counter()
        try:
            async with asyncio.timeout(10):
                answer: bytes | str = await pool.call(call.raw)
        except (OSError, TimeoutError) as error:
            answer = repr(error)
        answers.append(_Answer(call, time.perf_counter() - moment, sent - moment, answer))

    began, tasks = time.perf_counter(), []
    with _uncollected():
        for call, moment in zip(calls, due.tolist(), strict=True):
            wait = moment - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            if stop is not None and stop.is_set():
                break
            tasks.append(asyncio.create_task(one(call, moment)))
        await asyncio.gather(*tasks)
        seconds = time.perf_counter() - began
    pool.close()
    return _outcome(answers, seconds)


async def closed_loop(
    host: str, port: int, calls: Sequence[Call], seconds: float, clients: int
) -> Outcome:
    """`clients` connections that each send the next call when the last is answered."""
    answers: list[_Answer] = []
    until, turn = time.perf_counter() + seconds, iter(range(10**9))
    pool = Pool(host, port, clients)

    async def one() -> None:
        while time.perf_counter() < until:
            call = calls[next(turn) % len(calls)]
            sent = time.perf_counter()
            try:
                async with asyncio.timeout(10):
                    answer: bytes | str = await pool.call(call.raw)
            except (OSError, TimeoutError) as error:
                answer = repr(error)
            answers.append(_Answer(call, time.perf_counter() - sent, 0.0, answer))

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    seconds = time.perf_counter() - began
    pool.close()
    return _outcome(answers, seconds)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for cycles among the answers that pile up: the load must not stall itself."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _outcome(answers: list[_Answer], seconds: float) -> Outcome:
    """Every answer is checked here, after the run: checking takes nothing from the server."""
    return Outcome(
        seconds=seconds,
        latencies_ms=np.array([a.latency_s for a in answers]) * 1000,
        late_ms=np.array([a.late_s for a in answers]) * 1000,
        errors=[problem for problem in (a.problem() for a in answers) if problem],
    )

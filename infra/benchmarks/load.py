"""HTTP load: at a fixed rate independent of the server (open loop), or as fast as it responds
(closed loop).

In the open loop a latency counts from the scheduled time of the request: a server that stalls is
charged for every request scheduled meanwhile (no coordinated omission).
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

from afterclick.arrays import Float64Array
from infra.benchmarks.harness import percentiles
from infra.embedded.server import LOOPBACK

CONNECTIONS = 512
"""Maximum connections of the open loop; the server's listen queue is longer."""
_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """A GET and the check of its response body: `check` returns the error, or None."""

    raw: bytes
    check: Callable[[bytes], str | None]


@dataclass
class LoadResult:
    """Latencies and errors of one run."""

    seconds: float
    latencies_ms: Float64Array
    late_ms: Float64Array
    """Delay of the load itself before sending: the busy machine's share of the latencies."""
    errors: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Responses per second."""
        return len(self.latencies_ms) / self.seconds

    def percentile(self, q: float) -> float:
        """Latency in ms; NaN without responses."""
        latencies = self.latencies_ms
        return float(np.percentile(latencies, q)) if len(latencies) else float("nan")

    def percentiles_ms(self, prefix: str = "", digits: int = 2) -> dict[str, float]:
        """`<prefix>p50_ms` and so on."""
        found = percentiles(self.latencies_ms.tolist(), digits=digits)
        return {f"{prefix}{name}_ms": value for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class _Response:
    call: RequestSpec
    latency_s: float
    late_s: float
    content: bytes | str
    """The whole response, or the error."""

    def error(self) -> str | None:
        if isinstance(self.content, str):
            return self.content
        if not self.content.startswith(b"HTTP/1.1 200 "):
            return self.content[:200].decode(errors="replace")
        return self.call.check(self.content[self.content.find(b"\r\n\r\n") + 4 :])


class _Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = b""
        self._expected = -1
        self._response: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, raw: bytes) -> asyncio.Future[bytes]:
        assert self.transport is not None
        self._response = asyncio.get_running_loop().create_future()
        self.transport.write(raw)
        return self._response

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._expected < 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            start = self._buffer.find(b"content-length: ") + 16
            self._expected = end + 4 + int(self._buffer[start : self._buffer.find(b"\r\n", start)])
        if len(self._buffer) >= self._expected:
            response, self._buffer, self._expected = self._buffer, b"", -1
            if self._response is not None and not self._response.done():
                self._response.set_result(response)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._response is not None and not self._response.done():
            self._response.set_exception(error or ConnectionError("the server closed it"))


class ConnectionPool:
    """Idle connections to a port of this machine, and new ones up to a maximum."""

    def __init__(self, port: int, max_connections: int) -> None:
        self._port = port
        self._idle: deque[_Connection] = deque()
        self._slots = asyncio.Semaphore(max_connections)

    async def call(self, raw: bytes) -> bytes:
        """The whole response to a request. Raises OSError."""
        async with self._slots:
            connection = self._pop_idle() or await self._connect()
            response = await connection.send(raw)
            if connection.transport is not None:
                self._idle.append(connection)
            return response

    async def try_call(self, raw: bytes) -> bytes | str:
        """The whole response, or the error; times out."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await self.call(raw)
        except (OSError, TimeoutError) as error:
            return repr(error)

    def _pop_idle(self) -> _Connection | None:
        """An idle connection that the server has not closed."""
        while self._idle:
            connection = self._idle.pop()
            if connection.transport is not None:
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, LOOPBACK, self._port)
        return connection

    def close(self) -> None:
        for connection in self._idle:
            if connection.transport is not None:
                connection.transport.abort()


def get(path: str) -> bytes:
    """The bytes of a GET."""
    return f"GET {path} HTTP/1.1\r\nhost: {LOOPBACK}\r\n\r\n".encode()


def post(path: str, body: object) -> bytes:
    """The bytes of a POST of JSON."""
    content = orjson.dumps(body)
    head = f"POST {path} HTTP/1.1\r\nhost: {LOOPBACK}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


def json_body(response: bytes, status: int) -> Any:
    """The JSON of a whole response. Raises OSError for another status."""
    head, _, body = response.partition(b"\r\n\r\n")
    if int(head[9:12]) != status:
        raise OSError(response[:200].decode(errors="replace"))
    return orjson.loads(body)


async def _open_loop(
    port: int, calls: Sequence[RequestSpec], rate: float, stop: Event | None
) -> LoadResult:
    gaps = np.random.default_rng(1).exponential(1 / rate, len(calls))
    scheduled = np.cumsum(gaps) + time.perf_counter() + 0.2
    pool = ConnectionPool(port, CONNECTIONS)
    responses: list[_Response] = []

    async def send(call: RequestSpec, due: float) -> None:
        sent = time.perf_counter()
        content = await pool.try_call(call.raw)
        responses.append(_Response(call, time.perf_counter() - due, sent - due, content))

    started, tasks = time.perf_counter(), []
    with _without_gc():
        for call, due in zip(calls, scheduled.tolist(), strict=True):
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            if stop is not None and stop.is_set():
                break
            tasks.append(asyncio.create_task(send(call, due)))
        await asyncio.gather(*tasks)
        seconds = time.perf_counter() - started
    pool.close()
    return _result(responses, seconds)


def open_loop(
    port: int, calls: Sequence[RequestSpec], rate: float, stop: Event | None = None
) -> LoadResult:
    """Send `calls` at `rate` per second on average, as a Poisson process; ends early on `stop`."""
    return asyncio.run(_open_loop(port, calls, rate, stop))


async def _closed_loop(
    port: int, calls: Sequence[RequestSpec], seconds: float, clients: int
) -> LoadResult:
    responses: list[_Response] = []
    end, turn = time.perf_counter() + seconds, iter(range(10**9))
    pool = ConnectionPool(port, clients)

    async def client() -> None:
        while time.perf_counter() < end:
            call = calls[next(turn) % len(calls)]
            sent = time.perf_counter()
            content = await pool.try_call(call.raw)
            responses.append(_Response(call, time.perf_counter() - sent, 0.0, content))

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - started
    pool.close()
    return _result(responses, seconds)


def closed_loop(
    port: int, calls: Sequence[RequestSpec], seconds: float, clients: int
) -> LoadResult:
    """`clients` connections that each send the next call after the last response."""
    return asyncio.run(_closed_loop(port, calls, seconds, clients))


@contextmanager
def _without_gc() -> Iterator[None]:
    """No garbage collection of the accumulating responses, which would stall the load."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _result(responses: list[_Response], seconds: float) -> LoadResult:
    """Checks every response, after the run: checking costs the server nothing."""
    return LoadResult(
        seconds=seconds,
        latencies_ms=np.array([response.latency_s for response in responses]) * 1000,
        late_ms=np.array([response.late_s for response in responses]) * 1000,
        errors=[error for error in (response.error() for response in responses) if error],
    )

"""Hostile clients of `afterclick bench hostile`: bounded in time, requests and connections.

They reach ports of this machine only.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from infra.benchmarks.load import ConnectionPool
from infra.embedded.server import LOOPBACK
from serving.control.user_tokens import new_token
from serving.request import MAX_SHOWN, encode_cursor

OTHER_ADDRESS = "127.0.0.2"
"""Where many connections come from: limits per address do not meet the genuine client."""
CONNECTIONS = 64
"""Of a client that sends requests."""
_OPENING = 50
"""WebSockets that are opened at a time."""
_TRICKLE_S = 1.0
_TOKEN_S = 86_400.0
_CONDITIONS = 50
_CLOSED = 0
"""The status of a connection that the server closed without a response."""


@dataclass(frozen=True)
class AttackTarget:
    """Where an attack goes, and its size."""

    port: int
    secret: str
    """Signs tokens."""
    seconds: float
    count: int
    """Requests or connections at most."""

    @property
    def per_s(self) -> float:
        return self.count / self.seconds

    def header(self, user: str) -> str:
        """The line of the header with a user's token."""
        token, _ = new_token(self.secret, user, _TOKEN_S)
        return f"authorization: Bearer {token}\r\n"


@dataclass
class AttackReport:
    """Requests or connections by the status of the response."""

    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        return self.statuses.total()

    @property
    def refused(self) -> int:
        """Answered with 4xx or 503, or closed."""
        return sum(
            count
            for status, count in self.statuses.items()
            if status == _CLOSED or 400 <= status < 500 or status == 503
        )


def get_as(path: str, headers: str = "") -> bytes:
    """The bytes of a GET with further header lines."""
    return f"GET {path} HTTP/1.1\r\nhost: {LOOPBACK}\r\n{headers}\r\n".encode()


def slow_headers(target: AttackTarget) -> AttackReport:
    """Connections that send a byte of their headers per second; closed ones are opened again."""
    return asyncio.run(_slow_headers(target))


async def _slow_headers(target: AttackTarget) -> AttackReport:
    report, end = AttackReport(), time.monotonic() + target.seconds
    await asyncio.gather(*(_trickle(target.port, end, report) for _ in range(target.count)))
    return report


async def _trickle(port: int, end: float, report: AttackReport) -> None:
    while time.monotonic() < end:
        with suppress(OSError):
            reader, writer = await _connected(port)
            writer.write(b"GET /popular HTTP/1.1\r\nx-slow: ")
            while time.monotonic() < end and not reader.at_eof():
                writer.write(b"x")
                with suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1000), _TRICKLE_S)
            report.statuses[_CLOSED if reader.at_eof() else 200] += 1
            writer.close()
        await asyncio.sleep(_TRICKLE_S)


async def _connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(LOOPBACK, port, local_addr=(OTHER_ADDRESS, 0))


def many_callers(target: AttackTarget) -> AttackReport:
    """A request of each of many users with a token."""
    return _send(target, lambda n: get_as(f"/popular?n={1 + n % 50}", target.header(f"caller-{n}")))


def large_cursors(target: AttackTarget) -> AttackReport:
    """Pages with the largest cursors, all different."""
    header = target.header("cursors")

    def request(n: int) -> bytes:
        shown = [f"{'x' * 110}-{n + m:08d}" for m in range(MAX_SHOWN - 1)]
        path = f"/recommendations?user_id=cursors&n=1&cursor={encode_cursor(shown)}"
        return get_as(path, header)

    return _send(target, request)


def many_filters(target: AttackTarget) -> AttackReport:
    """Lists with as many conditions as one request may have, no two requests with the same."""
    header, letters = target.header("filters"), "abcdefghijklmnopqrstuvwxyz"
    words = itertools.cycle("".join(word) for word in itertools.product(letters, repeat=3))

    def request(_: int) -> bytes:
        conditions = "&".join(f"filters=title:{next(words)}" for _ in range(_CONDITIONS))
        return get_as(f"/popular?n=10&{conditions}", header)

    return _send(target, request)


def _send(target: AttackTarget, request: Callable[[int], bytes]) -> AttackReport:
    return asyncio.run(_send_steadily(target, request))


async def _send_steadily(target: AttackTarget, request: Callable[[int], bytes]) -> AttackReport:
    """`count` requests at a steady rate over `seconds`; what the server delays is sent later."""
    pool, report = ConnectionPool(target.port, CONNECTIONS), AttackReport()
    numbers, started = iter(range(target.count)), time.monotonic()

    async def client() -> None:
        for n in numbers:
            await asyncio.sleep(started + n / target.per_s - time.monotonic())
            if time.monotonic() > started + 2 * target.seconds:
                return
            response = await pool.try_call(request(n))
            report.statuses[_status(response)] += 1

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    pool.close()
    return report


def _status(response: bytes | str) -> int:
    return int(response[9:12]) if isinstance(response, bytes) else _CLOSED


def one_token_sockets(target: AttackTarget) -> AttackReport:
    """WebSockets of one user, which stay open and read."""
    return asyncio.run(_open_sockets(target))


async def _open_sockets(target: AttackTarget) -> AttackReport:
    report, end = AttackReport(), time.monotonic() + target.seconds
    slots, request = asyncio.Semaphore(_OPENING), _upgrade(target)

    async def hold() -> None:
        try:
            async with slots:
                reader, writer = await _connected(target.port)
                writer.write(request)
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), target.seconds)
            report.statuses[_status(head)] += 1
            await _drain(reader, end)
            writer.close()
        except (OSError, EOFError, TimeoutError):
            report.statuses[_CLOSED] += 1

    await asyncio.gather(*(hold() for _ in range(target.count)))
    return report


async def _drain(reader: asyncio.StreamReader, end: float) -> None:
    """Read until the end of the attack or of the connection."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(end - time.monotonic(), 0)):
            while await reader.read(65_536):
                pass


def _upgrade(target: AttackTarget) -> bytes:
    headers = (
        target.header("sockets")
        + "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        + "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    return get_as("/ws/recommendations?user_id=sockets&n=10", headers)


@dataclass(frozen=True)
class HostileCase:
    """An attack and its usual size."""

    attack: Callable[[AttackTarget], AttackReport]
    count: int
    per_s: float
    """Requests per second; 0: all at once."""

    @property
    def name(self) -> str:
        return self.attack.__name__

    def scaled(self, factor: float) -> HostileCase:
        return replace(self, count=max(round(self.count * factor), 1))

    def seconds(self, least: float) -> float:
        """How long the attack takes; at least `least`."""
        return max(self.count / self.per_s if self.per_s else 0.0, least)


CASES = (
    HostileCase(slow_headers, 800, 0),
    HostileCase(many_callers, 100_000, 500),
    HostileCase(large_cursors, 2_000, 50),
    HostileCase(many_filters, 600, 20),
    HostileCase(one_token_sockets, 5_000, 0),
)

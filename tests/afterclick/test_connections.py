"""Limits on connections: their number, the size of headers, the time of slow or silent clients."""

from __future__ import annotations

import logging
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network
from logging.handlers import BufferingHandler
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from afterclick.io.connections import (
    ConnectionLimits,
    Slots,
    _is_loopback,
    is_loopback,
    network_of,
)
from afterclick.settings import ServerSection
from tests.server_thread import ServerThread
from tests.waiting import PATIENCE_S, wait_until

SHORT_S = 0.3
LONG_BODY = b"x" * 2_000_000
UVICORN = {"http": "httptools", "ws": "websockets-sansio"}
HALF_HEADER = b"GET / HTTP/1.1\r\nhost: x\r\n"
REQUEST = HALF_HEADER + b"\r\n"
LONG = b"x" * 5000
LONG_HEADERS = {
    "target": b"GET /" + LONG,
    "name": HALF_HEADER + LONG,
    "value": HALF_HEADER + b"x: " + LONG,
    "many": HALF_HEADER + b"x: y\r\n" * 1000,
    "complete": HALF_HEADER + b"x: " + LONG + b"\r\n\r\n",
}
CHUNKED = b"POST /unread HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n"
NO_HTTP = b"x\r\n\r\n"
UNKNOWN_UPGRADE = HALF_HEADER + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n"
CLOSE = HALF_HEADER + b"connection: close\r\n\r\n"
EXCHANGES = {
    "closing": CLOSE,
    "several": REQUEST + REQUEST + CLOSE,
    "head": REQUEST.replace(b"GET", b"HEAD") + CLOSE,
    "closing head": CLOSE.replace(b"GET", b"HEAD"),
    "parts": REQUEST.replace(b"GET /", b"GET /parts") + CLOSE,
    "continue": b"POST /read HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 1\r\n"
    b"connection: close\r\n\r\nx",
}
DATA_SEGMENTS_IN = 152
"""Offset in Linux's struct tcp_info."""
UNREAD_BODY = b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\nx"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """A short response, also to a body on /read; a long one, one in parts, and a WebSocket."""
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
    elif scope["path"] == "/parts":
        await send({"type": "http.response.start", "status": 200})
        for part in (b"a", b"", b"b"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"c"})
    else:
        if scope["path"] == "/read":
            await receive()
        body = LONG_BODY if scope["path"] == "/long" else b"short"
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def served(
    limits: ConnectionLimits | None = None, idle_s: int = 5, level: str = "critical"
) -> Iterator[int]:
    """The port of a server with these limits, or of uvicorn without."""
    protocols: dict[str, Any] = dict(UVICORN) if limits is None else limits.protocols()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            application,
            log_level=level,
            timeout_graceful_shutdown=1,
            timeout_keep_alive=idle_s,
            **protocols,
        )
        with ServerThread(config, listener) as server:
            yield server.port


def opened(port: int, sent: bytes = b"", address: str = "127.0.0.1") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE_S, (address, 0))
    connection.sendall(sent)
    return connection


def until_closed(connection: socket.socket) -> bytes:
    """What arrives until the server closes the connection."""
    received = b""
    try:
        while data := connection.recv(65_536):
            received += data
    except ConnectionResetError:
        pass
    return received


def is_open(connection: socket.socket, rest: bytes = b"\r\n") -> bool:
    """Whether the server still answers on a connection with half a request."""
    connection.sendall(rest)
    return connection.recv(100).startswith(b"HTTP/1.1 200")


def limits(**slots: int) -> ConnectionLimits:
    counts = Slots(**{"address": 100, "total": 100} | slots)
    return ConnectionLimits(counts, header_s=SHORT_S, body_s=SHORT_S, read_s=SHORT_S)


def of_settings(**settings: float) -> ConnectionLimits:
    return ConnectionLimits.of(ServerSection.model_validate({"port": 0, **settings}))


def test_a_client_that_sends_no_request_is_disconnected() -> None:
    with served() as plain, opened(plain, HALF_HEADER) as control:
        bounded = limits()
        with served(bounded) as port:
            with opened(port) as silent, opened(port, HALF_HEADER) as half:
                assert until_closed(silent) == b""
                assert until_closed(half).startswith(b"HTTP/1.1 408")
            with opened(port, REQUEST) as second:
                assert second.recv(1000).startswith(b"HTTP/1.1 200")
                second.sendall(HALF_HEADER)
                assert b"408" in until_closed(second), "also after a first request"
        assert bounded.timed_out == 3
        assert is_open(control), "uvicorn itself waits for ever"


def test_empty_lines_do_not_keep_an_idle_connection_open() -> None:
    with served(of_settings(), idle_s=1) as port, opened(port, REQUEST) as idle:
        assert idle.recv(1000).startswith(b"HTTP/1.1 200")
        idle.sendall(b"\r\n")
        assert until_closed(idle) == b""


def test_a_request_ends_the_idle_time_also_after_empty_lines() -> None:
    patient = of_settings(header_s=PATIENCE_S)
    with served(patient, idle_s=5) as port, opened(port, REQUEST) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        connection.sendall(b"\r\n" + HALF_HEADER)
        with opened(port, REQUEST) as other:  # idle for as long
            assert until_closed(other).startswith(b"HTTP/1.1 200")
        assert is_open(connection)


def small_headers() -> ConnectionLimits:
    """Limits on the size of headers, and on nothing else."""
    return of_settings(header_s=PATIENCE_S, body_s=PATIENCE_S, max_header_bytes=1024)


@pytest.mark.parametrize("sent", LONG_HEADERS.values(), ids=LONG_HEADERS)
def test_long_headers_are_rejected_before_they_accumulate(sent: bytes) -> None:
    with served(small_headers()) as port, opened(port, sent) as connection:
        assert until_closed(connection).startswith(b"HTTP/1.1 431")


def test_long_trailers_close_the_connection() -> None:
    with served(small_headers()) as port, opened(port, CHUNKED) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        connection.sendall(b"0\r\nx: " + LONG)
        until_closed(connection)


def test_long_bodies_and_many_requests_in_one_read_are_not_long_headers() -> None:
    body = HALF_HEADER.replace(b"GET", b"POST") + b"content-length: 5000\r\n\r\n" + LONG
    with served(small_headers()) as port, opened(port, body + REQUEST * 100) as connection:
        answers = b""
        while answers.count(b"HTTP/1.1 200") < 101:
            received = connection.recv(65_536)
            assert received, answers[-1000:]
            answers += received


def test_control_uvicorn_waits_for_the_end_of_any_header() -> None:
    with served() as plain, opened(plain, HALF_HEADER + b"x: " + LONG * 200) as control:
        assert is_open(control, b"\r\n\r\n")


def test_names_that_are_no_host_are_not_kept() -> None:
    kept = _is_loopback.cache_info().currsize
    assert not is_loopback("x" * 10_000)
    assert _is_loopback.cache_info().currsize == kept
    hosts = ("localhost", "127.0.0.1", "shop.example")
    assert [is_loopback(host) for host in hosts] == [True, True, False]


def test_a_body_that_nobody_reads_does_not_keep_a_connection_open() -> None:
    with served(limits()) as port, opened(port, UNREAD_BODY) as slow:
        assert until_closed(slow).startswith(b"HTTP/1.1 200")


def test_a_client_that_does_not_read_is_disconnected() -> None:
    bounded = limits()
    with served(bounded) as port, opened(port, b"GET /long HTTP/1.1\r\nhost: x\r\n\r\n" * 20):
        wait_until(lambda: bounded.timed_out == 1)
        wait_until(lambda: bounded.slots.open() == 0)


def test_connections_of_one_address_leave_room_for_others() -> None:
    bounded = limits(address=3, total=5)
    bounded.header_s = PATIENCE_S
    with served(bounded) as port, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(opened(port))
        wait_until(lambda: bounded.slots.open() == 3)
        with opened(port) as excess:
            assert until_closed(excess).startswith(b"HTTP/1.1 503")
        for _ in range(2):
            other = stack.enter_context(opened(port, REQUEST, "127.0.0.2"))
            assert other.recv(1000).startswith(b"HTTP/1.1 200")
        with opened(port, address="127.0.0.3") as excess:
            assert until_closed(excess).startswith(b"HTTP/1.1 503")
        assert bounded.slots.refused == {"address": 1, "total": 1}
        stack.close()
        wait_until(lambda: bounded.slots.open() == 0)
        with opened(port, REQUEST) as again:
            assert again.recv(1000).startswith(b"HTTP/1.1 200")


def test_the_clients_behind_a_proxy_are_not_one_address() -> None:
    bounded = limits(address=1)
    bounded.proxies = (ip_network("127.0.0.2/32"),)
    with served(bounded) as port, ExitStack() as stack:
        for _ in range(3):
            proxied = stack.enter_context(opened(port, REQUEST, "127.0.0.2"))
            assert proxied.recv(1000).startswith(b"HTTP/1.1 200")
        stack.enter_context(opened(port, REQUEST)).recv(1000)
        with opened(port, REQUEST) as excess:
            assert not until_closed(excess).startswith(b"HTTP/1.1 200"), "the control"
        assert bounded.slots.refused["address"] == 1


def test_a_websocket_keeps_the_slot_of_its_connection_and_no_request_timer() -> None:
    bounded = limits(total=1)
    with served(bounded) as port:
        with connect(f"ws://127.0.0.1:{port}") as websocket:
            with opened(port) as excess:
                assert until_closed(excess).startswith(b"HTTP/1.1 503")
            with pytest.raises(TimeoutError):
                websocket.recv(3 * SHORT_S)
            websocket.ping().wait(PATIENCE_S)
        wait_until(lambda: bounded.slots.open() == 0)


@pytest.mark.parametrize("bounded", [limits(), None], ids=["counted", "control: uvicorn"])
def test_what_clients_get_wrong_does_not_fill_the_log(bounded: ConnectionLimits | None) -> None:
    logger, lines = logging.getLogger("uvicorn.error"), BufferingHandler(1000)
    with served(bounded, level="warning") as port:
        logger.addHandler(lines)
        for wrong in (NO_HTTP, UNKNOWN_UPGRADE):
            with opened(port, wrong) as connection:
                assert connection.recv(100).startswith(b"HTTP/1.1 ")
        with connect(f"ws://127.0.0.1:{port}") as websocket:
            websocket.send(b"\xff", text=True)
            with pytest.raises(ConnectionClosedError):
                websocket.recv(PATIENCE_S)
        logger.removeHandler(lines)
    assert len(lines.buffer) == (3 if bounded is None else 0)
    assert bounded is None or bounded.malformed == 1


def test_slots_are_taken_under_every_key_or_none_and_without_limit_counted() -> None:
    slots = Slots(user=1, address=0, total=2)
    ann, bob = {"user": "ann", "address": "a"}, {"user": "bob", "address": "a"}
    assert [slots.take(**ann, total=""), slots.take(**ann, total="")] == [None, "user"]
    assert [slots.take(**bob, total=""), slots.take(user="cid", total="")] == [None, "total"]
    assert (slots.open(), slots.open("address", "a"), slots.open("user", "cid")) == (2, 2, 0)
    slots.release(**ann, total="")
    slots.release(**bob, total="")
    assert (slots.open(), slots.open("address", "a")) == (0, 0)


def test_an_ipv6_host_is_its_network() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::2:3") != network_of("2001:db9::1")
    assert network_of("fe80::1%eth0") == "fe80::/64"
    assert (network_of("10.0.0.1"), network_of("unknown")) == ("10.0.0.1", "unknown")


def data_segments(connection: socket.socket) -> int:
    """How many packets with data a connection has received."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, DATA_SEGMENTS_IN + 4)
    return int.from_bytes(info[DATA_SEGMENTS_IN:], sys.byteorder)


@pytest.mark.parametrize(("bounded", "packets"), [(limits(), 1), (None, 2)])
def test_a_response_is_one_packet_but_two_of_uvicorn_alone(
    bounded: ConnectionLimits | None, packets: int
) -> None:
    with served(bounded) as port, opened(port, REQUEST) as connection:
        received = b""
        while not received.endswith(b"short"):
            received += connection.recv(1000)
        assert data_segments(connection) == packets


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_responses_are_those_of_uvicorn_alone(exchange: str) -> None:
    bodies = []
    for bounded in (limits(), None):
        with served(bounded) as port, opened(port, EXCHANGES[exchange]) as connection:
            received = until_closed(connection)
            bodies.append(re.sub(rb"date: [^\r]*\r\n", b"", received))
    assert bodies[0] == bodies[1]
    assert bodies[0]

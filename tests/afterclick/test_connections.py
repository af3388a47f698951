"""Limits on connections: their number, and the time of clients that are slow or silent."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from websockets.sync.client import connect

from afterclick.io.connections import ConnectionLimits, Slots, network_of
from tests.server_thread import ServerThread
from tests.waiting import PATIENCE_S, wait_until

SHORT_S = 0.3
LONG_BODY = b"x" * 2_000_000
UVICORN = {"http": "httptools", "ws": "websockets-sansio"}
HALF_HEADER = b"GET / HTTP/1.1\r\nhost: x\r\n"
REQUEST = HALF_HEADER + b"\r\n"
UNREAD_BODY = b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\nx"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """A short response, a long one on /long, and a WebSocket."""
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
    else:
        body = LONG_BODY if scope["path"] == "/long" else b"short"
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def served(limits: ConnectionLimits | None = None) -> Iterator[int]:
    """The port of a server with these limits, or of uvicorn without."""
    protocols: dict[str, Any] = dict(UVICORN) if limits is None else limits.protocols()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            application, log_level="critical", timeout_graceful_shutdown=1, **protocols
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


def is_open(connection: socket.socket) -> bool:
    """Whether the server still answers on a connection with half a request."""
    connection.sendall(b"\r\n")
    return connection.recv(100).startswith(b"HTTP/1.1 200")


def limits(**slots: int) -> ConnectionLimits:
    counts = Slots(**{"address": 100, "total": 100} | slots)
    return ConnectionLimits(counts, header_s=SHORT_S, body_s=SHORT_S, read_s=SHORT_S)


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

"""A TCP proxy in front of a broker that swallows acknowledgements of records already written.

Kafka frames are four bytes of length, then for a request: api key (int16), api version (int16),
correlation id (int32); for a response: correlation id (int32).
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType

_PRODUCE = 0
_REQUEST = struct.Struct(">hhi")
_LENGTH = struct.Struct(">I")
_CORRELATION = struct.Struct(">i")
_LOOPBACK = "127.0.0.1"


class AckProxy:
    """Forwards connections to a broker during a `with`.

    While `swallow_every` is n > 0, each n-th response to a produce request is dropped and its
    connection closed, as if the network failed between write and acknowledgement. `swallowed`
    counts them.
    """

    def __init__(self, port: int, broker_port: int) -> None:
        self.swallow_every = 0
        self.swallowed = 0
        self._seen = 0
        self._broker_port = broker_port
        self._lock = threading.Lock()
        self._listener = socket.create_server((_LOOPBACK, port))

    def __enter__(self) -> AckProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Forward both ways until either side closes or a response is swallowed."""
        with (
            suppress(OSError),
            client,
            socket.create_connection((_LOOPBACK, self._broker_port)) as broker,
        ):
            for end in (client, broker):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            produce: set[int] = set()
            requests = threading.Thread(
                target=self._forward_requests, args=(client, broker, produce)
            )
            requests.start()
            self._forward_responses(broker, client, produce)
            for end in (client, broker):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            requests.join()

    def _forward_requests(
        self, client: socket.socket, broker: socket.socket, produce: set[int]
    ) -> None:
        with suppress(OSError):
            while frame := _frame(client):
                api, _, correlation = _REQUEST.unpack_from(frame, _LENGTH.size)
                if api == _PRODUCE:
                    produce.add(correlation)
                broker.sendall(frame)
        with suppress(OSError):
            broker.shutdown(socket.SHUT_WR)

    def _forward_responses(
        self, broker: socket.socket, client: socket.socket, produce: set[int]
    ) -> None:
        with suppress(OSError):
            while frame := _frame(broker):
                (correlation,) = _CORRELATION.unpack_from(frame, _LENGTH.size)
                if correlation in produce and self._swallow_next():
                    return
                client.sendall(frame)

    def _swallow_next(self) -> bool:
        with self._lock:
            self._seen += 1
            swallow = self.swallow_every > 0 and self._seen % self.swallow_every == 0
            self.swallowed += swallow
        return swallow


def _frame(source: socket.socket) -> bytes:
    """The next frame with its length; empty at the end of the stream."""
    head = _exactly(source, _LENGTH.size)
    if not head:
        return b""
    body = _exactly(source, _LENGTH.unpack(head)[0])
    return head + body if body else b""


def _exactly(source: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = source.recv(min(size, 1 << 20))
        if not part:
            return b""
        parts.append(part)
        size -= len(part)
    return b"".join(parts)

"""An HTTP server for downloads that injects faults."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """Serves /data/file.csv; closes the connection after `cut_after` bytes, `cuts` times."""

    content: bytes
    cut_after: int = 0
    cuts: int = 0
    ranges: bool = True
    etag: str = '"v1"'
    failures: int = 0
    """Answer this many requests with HTTP 503."""
    url: str = ""
    requested_ranges: list[str | None] = field(default_factory=list)
    """The Range header of each request."""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        requested = handler.headers.get("Range")
        self.requested_ranges.append(requested)
        if self.failures:
            self.failures -= 1
            handler.send_error(503)
            return
        start = (
            int(requested.removeprefix("bytes=").removesuffix("-"))
            if requested and self.ranges
            else 0
        )
        if handler.headers.get("If-Range", self.etag) != self.etag:
            start = 0
        if start >= len(self.content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        self._send(handler, self.content[start:], start)

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes, start: int) -> None:
        handler.send_response(206 if start else 200)
        if start:
            size = len(self.content)
            handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("ETag", self.etag)
        handler.end_headers()
        if self.cuts:
            self.cuts -= 1
            handler.wfile.write(body[: self.cut_after])
            handler.wfile.flush()
            handler.connection.close()
            return
        handler.wfile.write(body)


@contextmanager
def serving(server: FileServer) -> Iterator[FileServer]:
    """The server, listening on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}/data/file.csv"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()

"""Download the official dataset files with resume.

reads   http  McAuley's Amazon product data (research use; cite He & McAuley, WWW 2016)
writes  file  <folder>/<name>; until it is complete <name>.part and <name>.part.json
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import orjson
import stamina

from afterclick.errors import BadInput, Unavailable

_BASE = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
OFFICIAL = {
    "electronics": (f"{_BASE}/ratings_Electronics.csv", f"{_BASE}/meta_Electronics.json.gz"),
}
"""Dataset → URLs of its ratings file and its metadata file."""

Progress = Callable[[str, int, int | None], None]
"""Called with file name, bytes so far, total bytes (None if unknown)."""


@dataclass(frozen=True)
class RetryPolicy:
    """Timeouts and retries of a download."""

    connect_s: float = 5.0
    read_s: float = 30.0
    attempts: int = 8
    """Consecutive attempts without new bytes before giving up."""
    pause_s: float = 1.0
    """Wait after such an attempt; doubled each time, at most 30 s."""


def download(
    url: str,
    folder: Path,
    policy: RetryPolicy = RetryPolicy(),
    on_progress: Progress = lambda name, done, total: None,
) -> Path:
    """Download a URL into a folder. A partial file is resumed; a complete file is kept.

    The size is checked against the server's. Raises Unavailable if the server cannot be reached or
    keeps closing the connection; the partial file is kept for the next run.
    """
    name = Path(urlsplit(url).path).name
    target = folder / name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    transfer = _Transfer(url, target, on_progress)
    retry = stamina.RetryingCaller(
        policy.attempts, timeout=None, wait_initial=policy.pause_s, wait_max=30.0, wait_jitter=0.0
    )
    timeout = httpx2.Timeout(policy.read_s, connect=policy.connect_s)
    with httpx2.Client(timeout=timeout, follow_redirects=True) as client:
        try:
            while not transfer.complete:
                retry(_NoProgress, transfer.attempt, client)
        except _NoProgress as error:
            raise Unavailable(f"{url}: {error}; run the command again to resume") from None
    transfer.finish()
    return target


class _NoProgress(Exception):
    """An attempt received no new bytes."""


class _Transfer:
    """One file in transfer: the partial file, the version it belongs to, and the total size."""

    def __init__(self, url: str, target: Path, on_progress: Progress) -> None:
        self.url, self.target, self.on_progress = url, target, on_progress
        self.part = target.with_name(f"{target.name}.part")
        self.note = target.with_name(f"{target.name}.part.json")
        self.total: int | None = None
        self.version: str | None = None
        self.complete = False
        self._load_note()

    @property
    def done(self) -> int:
        """Bytes on disk."""
        return self.part.stat().st_size if self.part.exists() else 0

    def attempt(self, client: httpx2.Client) -> None:
        """Request the missing bytes. Raises _NoProgress if none arrive."""
        before = self.done
        try:
            self._receive(client)
            problem = f"the server sent {self.done} of {self.total} bytes"
        except httpx2.TransportError as error:
            problem = str(error) or type(error).__name__
            if not before and isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
                # no internet: fail without retries
                raise Unavailable(f"{self.url}: cannot be reached ({problem})") from None
        if not self.complete and self.done <= before:
            raise _NoProgress(problem)

    def _receive(self, client: httpx2.Client) -> None:
        headers = {"Accept-Encoding": "identity"}
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
            if self.version:
                headers["If-Range"] = self.version
        with client.stream("GET", self.url, headers=headers) as response:
            if response.status_code == 416:  # the part is complete, or the file became shorter
                self._check_end(response)
                return
            if response.status_code >= 500:
                raise httpx2.RemoteProtocolError(f"HTTP {response.status_code}")
            if response.status_code not in (200, 206):
                raise Unavailable(f"{self.url}: HTTP {response.status_code}")
            self._begin(response)
            with self.part.open("ab") as file:
                for chunk in response.iter_raw():  # unbuffered: a cut loses no bytes
                    file.write(chunk)
                    file.flush()
                    self.on_progress(self.target.name, self.done, self.total)
        self.complete = self.total is None or self.done == self.total
        if self.total is not None and self.done > self.total:
            self._discard()
            raise httpx2.RemoteProtocolError("more bytes than announced by the server")

    def finish(self) -> None:
        """Rename the complete file to its final name."""
        self.part.replace(self.target)
        self.note.unlink(missing_ok=True)

    def _begin(self, response: httpx2.Response) -> None:
        length = response.headers.get("content-length")
        if response.status_code == 206:
            start, total = _content_range(response)
            if start != self.done:
                self._discard()
                raise httpx2.RemoteProtocolError("the server sent a different range")
            self.total = total
        else:  # no resume support, or the file changed: start over
            self._discard()
            self.total = int(length) if length and length.isdigit() else None
        strong = response.headers.get("etag", "")
        self.version = strong if strong and not strong.startswith("W/") else None
        self.version = self.version or response.headers.get("last-modified")
        self.note.write_bytes(
            orjson.dumps({"url": self.url, "total": self.total, "version": self.version})
        )

    def _check_end(self, response: httpx2.Response) -> None:
        _, total = _content_range(response)
        if total is not None and total == self.done:
            self.total, self.complete = total, True
        else:
            self._discard()

    def _load_note(self) -> None:
        try:
            note = orjson.loads(self.note.read_bytes())
            if note["url"] != self.url:
                raise ValueError("a part of another file")
            self.total, self.version = note["total"], note["version"]
        except (OSError, ValueError, KeyError, TypeError):
            self._discard()

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self.total = self.version = None


def _content_range(response: httpx2.Response) -> tuple[int, int | None]:
    """First byte and total size from `bytes 100-199/200` or `bytes */200`."""
    _, _, spec = response.headers.get("content-range", "").partition(" ")
    span, _, total = spec.partition("/")
    start = span.partition("-")[0]
    return int(start) if start.isdigit() else -1, int(total) if total.isdigit() else None


def official_urls(name: str) -> tuple[str, str]:
    """Ratings and metadata URL of an official dataset. Raises BadInput for an unknown name."""
    try:
        return OFFICIAL[name.lower()]
    except KeyError:
        raise BadInput(f"unknown dataset {name!r}; available: {', '.join(OFFICIAL)}") from None

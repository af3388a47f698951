"""What the workers of one API ask one another: answers from the memory of one process, as JSON.

Each worker answers at a Unix socket in a folder that only its owner may enter. A connection carries
one question, a line, and its answer. Asking costs the others nothing until somebody reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from inspect import isawaitable
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import orjson
import structlog

log = structlog.get_logger()
TIMEOUT_S: Final = 1.0
"""A worker that has not answered by then is left out."""
QUESTION_S: Final = 5.0
"""How long a question may take to arrive."""
Answer = Callable[..., Any]
"""Arguments of JSON → JSON, or an awaitable of it."""
T = TypeVar("T")
R = TypeVar("R")


class Peers:
    """The other workers of this API; by default there are none. Event loop only."""

    def __init__(
        self,
        number: int = 0,
        count: int = 1,
        folder: Path | None = None,
        *,
        replaces_another: bool = False,
    ) -> None:
        """`number`: of this worker, from 0; `folder` holds the sockets of all `count` workers."""
        self.number, self.count, self._folder = number, count, folder
        self.replaces_another = replaces_another
        """The worker before it has died, and others serve."""
        self._answers: dict[str, Answer] = {}
        self._server: asyncio.Server | None = None

    def answer(self, question: str, answer: Answer) -> None:
        """Answer a question of the others."""
        self._answers[question] = answer

    async def start(self) -> None:
        """Listen, if there are others."""
        if self._folder is not None:
            path = socket_of(self._folder, self.number)
            path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._serve, path)

    async def stop(self) -> None:
        """Answer no more questions."""
        if self._server is not None:
            self._server.close()

    async def ask(self, question: str, *arguments: Any) -> list[Any]:
        """The answers of the other workers that answer in time, in the order of their numbers."""
        if self._folder is None:
            return []
        line = orjson.dumps([question, *arguments]) + b"\n"
        others = (number for number in range(self.count) if number != self.number)
        sockets = [socket_of(self._folder, number) for number in others]
        answers = await asyncio.gather(*(_ask(path, line) for path in sockets))
        return [orjson.loads(answer) for answer in answers if answer]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(QUESTION_S):
                question, *arguments = orjson.loads(await reader.readline())
            answer = self._answers[question](*arguments)
            writer.write(orjson.dumps(await answer if isawaitable(answer) else answer))
            await writer.drain()
        except OSError:
            pass  # the one who asks has left
        except Exception:  # without an answer, the one who asks leaves this worker out
            log.exception("a question of another worker is not answered")
        finally:
            writer.close()


class Shared(Generic[T, R]):
    """A value of which each worker holds a part."""

    def __init__(
        self, peers: Peers, name: str, part: Callable[..., T], merge: Callable[[Sequence[T]], R]
    ) -> None:
        """`part`: that of this worker, JSON; `merge` gets it first, then those of the others."""
        self._peers, self._name, self._part, self._merge = peers, name, part, merge
        peers.answer(name, part)

    async def read(self, *arguments: Any) -> R:
        """The value as of now, of the workers that answer."""
        own = self._part(*arguments)
        return self._merge([own, *await self._peers.ask(self._name, *arguments)])


def socket_of(folder: Path, number: int) -> Path:
    """Where a worker answers; it exists once the worker has started."""
    return folder / str(number)


async def _ask(path: Path, line: bytes) -> bytes:
    """The answer of one worker; empty without one."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(line)
                return await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""

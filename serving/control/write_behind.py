"""Write to SQL behind the answers: one thread, every two seconds, going on where it was after an outage.

What comes in a flood, as a catalogue does, is written in slices, with four times as long between them as
they take: requests are answered meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from afterclick.errors import AfterclickError
from serving.control.store import Database

log = structlog.get_logger()
PAUSE_S: Final = 2.0
LEAST_PAUSE_S: Final = 0.02
SHARE: Final = 4.0
"""Between two slices, so many times as long as a slice takes."""


class Part(Protocol):
    """Something that has rows to write, or to read again."""

    def exchange(self, database: Database) -> bool:
        """Write what waits or a slice of it, read what is wanted; whether more waits.

        Raises Unavailable; what was not written goes on waiting.
        """
        ...


class WrittenBehind:
    """Lets each part exchange with the database, in turn, beside the requests."""

    def __init__(self, database: Database, parts: Sequence[Part]) -> None:
        self._database, self._parts = database, parts
        self._busy: list[Part] = []
        """Those that have more to write than a slice."""
        self._round_at = -PAUSE_S
        self._ready = self._told = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sql-behind", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Once more, then end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(3.0)

    def _run(self) -> None:
        last = False
        while not last:
            last = self._stop.is_set()
            began = time.monotonic()
            try:
                self._exchange(last)
                self._told = False
            except AfterclickError as error:
                if not self._told:
                    log.warning("catalogue and users are not copied into SQL", error=str(error))
                self._told, self._ready, self._busy = True, False, []
            except Exception:
                log.exception("catalogue and users could not be copied into SQL")
                self._ready, self._busy = False, []
            last = last and not self._busy
            slice_s = time.monotonic() - began
            pause_s = min(PAUSE_S, max(LEAST_PAUSE_S, SHARE * slice_s)) if self._busy else PAUSE_S
            self._stop.wait(pause_s)

    def _exchange(self, last: bool) -> None:
        """Every part in turn; between two rounds those alone that have more to write."""
        if not self._ready:
            self._database.upgrade()
            self._ready = True
        whole = last or not self._busy or time.monotonic() - self._round_at >= PAUSE_S
        if whole:
            self._round_at = time.monotonic()
        self._busy = [
            part for part in (self._parts if whole else self._busy) if part.exchange(self._database)
        ]

"""Work that repeats in a background thread, and the heartbeats that show that it goes on."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence

import structlog

from afterclick.errors import AfterclickError

log = structlog.get_logger()
HEARTBEAT_LIMIT_S = 60.0
"""Age from which a loop counts as frozen."""
_RETRY_S = 1.0


class Heartbeat:
    """When a loop last completed a turn. The loop's thread beats, any thread reads."""

    def __init__(self, name: str, limit_s: float = HEARTBEAT_LIMIT_S) -> None:
        self.name, self.limit_s = name, limit_s
        self._due = math.inf

    def beat(self, pause_s: float | None = 0.0) -> None:
        """A turn is complete; the next is due in `pause_s`, or not until `wake` (None)."""
        self._due = math.inf if pause_s is None else time.monotonic() + pause_s

    def expect(self) -> None:
        """A turn is due now, if not before."""
        self._due = min(self._due, time.monotonic())

    @property
    def due_in_s(self) -> float:
        """Seconds until the next turn is due; negative if it is late, infinite if none is."""
        return self._due - time.monotonic()

    @property
    def age_s(self) -> float:
        """Seconds since the next turn was due; 0 while none is."""
        return max(0.0, -self.due_in_s)

    @property
    def frozen(self) -> bool:
        return self.age_s > self.limit_s


class HeartbeatMonitor:
    """Logs each heartbeat that stops and that returns, once."""

    def __init__(self, heartbeats: Sequence[Heartbeat]) -> None:
        self.heartbeats = tuple(heartbeats)
        self._known: set[str] = set()

    def frozen(self) -> list[Heartbeat]:
        """The loops that are frozen now."""
        return [heartbeat for heartbeat in self.heartbeats if heartbeat.frozen]

    def check(self) -> None:
        """Log what has changed since the last call."""
        frozen = {heartbeat.name: heartbeat for heartbeat in self.frozen()}
        for name in frozen.keys() - self._known:
            log.error("loop frozen", loop=name, seconds=round(frozen[name].age_s, 1))
        for name in self._known - frozen.keys():
            log.info("loop goes on", loop=name)
        self._known = set(frozen)


class BackgroundLoop:
    """Calls `work` in a named daemon thread until it is stopped.

    `work` may return the seconds until its next call; None means `interval_s`, and an interval of
    None means "until `wake`". Exceptions are logged and the loop goes on after `interval_s`, at
    least one second: an AfterclickError as one warning per series of failures, anything else with
    its traceback.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], float | None],
        interval_s: float | None = None,
        *,
        final_run: bool = False,
        limit_s: float = HEARTBEAT_LIMIT_S,
    ) -> None:
        """`final_run`: after `stop`, call `work` once more, to write what is left. `limit_s`: a
        call that takes longer counts as frozen."""
        self.heartbeat = Heartbeat(name, limit_s)
        self._name, self._work, self._interval_s = name, work, interval_s
        self._final_run = final_run
        self._stop, self._wake = threading.Event(), threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called: for work that takes long."""
        return self._stop.is_set()

    def start(self) -> None:
        self.heartbeat.beat()
        self._thread.start()

    def wake(self) -> None:
        """Call `work` now, or right after the call in progress."""
        self._wake.set()
        if self._thread.is_alive():
            self.heartbeat.expect()

    def stop(self, timeout_s: float = 3.0) -> None:
        """Stop, and wait up to `timeout_s` for the call in progress. Idempotent."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            self.heartbeat.beat()
            pause_s = self._call()
            self.heartbeat.beat(pause_s)
            if self._wake.is_set():
                self.heartbeat.expect()
            if not self._stop.is_set():
                self._wake.wait(pause_s)
        if self._final_run:
            self._call()
        self.heartbeat.beat(None)

    def _call(self) -> float | None:
        """Seconds until the next call; None: until `wake`."""
        try:
            pause_s = self._work()
        except AfterclickError as error:
            if not self._failing:
                log.warning(
                    "background work failed; trying again", work=self._name, error=str(error)
                )
        except Exception:
            log.exception("background work failed; trying again", work=self._name)
        else:
            self._failing = False
            return self._interval_s if pause_s is None else pause_s
        self._failing = True
        return max(self._interval_s or 0.0, _RETRY_S)

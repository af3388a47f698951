"""Work that repeats in a background thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from afterclick.errors import AfterclickError

log = structlog.get_logger()
_RETRY_S = 1.0


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
    ) -> None:
        """`final_run`: after `stop`, call `work` once more, to write what is left."""
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
        self._thread.start()

    def wake(self) -> None:
        """Call `work` now, or right after the call in progress."""
        self._wake.set()

    def stop(self, timeout_s: float = 3.0) -> None:
        """Stop, and wait up to `timeout_s` for the call in progress. Idempotent."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            pause_s = self._call()
            if not self._stop.is_set():
                self._wake.wait(pause_s)
        if self._final_run:
            self._call()

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

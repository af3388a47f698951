"""Wait for conditions, instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
# for conditions that must become true on a busy machine; benchmarks measure how soon
PATIENCE_S = 90.0
# the Redis timeout of the API, where no test stops Redis
REDIS_S = 10.0


def wait_until(
    condition: Callable[[], T | None],
    timeout: float = PATIENCE_S,
    *,
    every: float = 0.05,
    what: str = "",
) -> T:
    """Return the first truthy result of `condition`; fail with the last one after the timeout."""
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(
                f"not within {timeout} s: {what or condition}; last answer: {answer!r}"
            )
        time.sleep(every)

"""Wait for what must become true, instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
# how long a machine may be busy: the tests ask what becomes true, the benches how soon
PATIENCE_S = 90.0
# of the API with Redis, where no test takes it away
REDIS_S = 10.0


def wait_until(
    condition: Callable[[], T | None], timeout: float = PATIENCE_S, *, every: float = 0.05, what: str = ""
) -> T:
    """Return the first truthy answer of `condition`; fail with the last answer when the time is up."""
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

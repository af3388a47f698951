"""A circuit breaker: what fails again and again is left alone for a moment, so that nobody waits for it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import structlog

log = structlog.get_logger()
AWAY_S = 1.0
"""How long it is left alone after it failed."""
FAILURES = 3
"""Failures in a row after which it is left alone."""


@dataclass
class Breaker:
    """Remembers that something failed. While open, one request per `AWAY_S` tries again."""

    name: str
    opened: float = 0.0
    failures: int = 0

    @property
    def open(self) -> bool:
        """Whether it is left alone."""
        return self.failures >= FAILURES

    def allows(self, now: float) -> bool:
        if not self.open:
            return True
        if now - self.opened < AWAY_S:
            return False
        self.opened = now  # this request is the probe; the others go on without
        return True

    def failed(self, error: Exception) -> None:
        self.failures += 1
        self.opened = time.monotonic()
        if self.failures == FAILURES:
            log.warning(f"{self.name} does not answer; going on without it", error=str(error))

    def gone(self, error: Exception) -> None:
        """It is known to be away: nobody has to find out."""
        self.failures = max(self.failures, FAILURES - 1)
        self.failed(error)

    def worked(self) -> None:
        if self.open:
            log.info(f"{self.name} answers again")
        self.failures = 0

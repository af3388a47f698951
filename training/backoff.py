"""Wait before something that failed is tried again: each time twice as long, up to a bound."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Backoff:
    """How long to wait, by whatever clock it is told the time of."""

    first_s: float = 60.0
    """The wait after the first failure."""
    most_s: float = 3600.0
    failures: int = 0
    """In a row."""
    until: float = 0.0

    def failed(self, now: float) -> float:
        """Count a failure; returns the seconds to wait."""
        wait = min(self.first_s * 2.0 ** min(self.failures, 30), self.most_s)
        self.failures += 1
        self.until = now + wait
        return wait

    def reset(self) -> None:
        """It went well."""
        self.failures, self.until = 0, 0.0

    def over(self, now: float) -> bool:
        """Whether it may be tried."""
        return now >= self.until

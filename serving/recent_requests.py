"""The newest requests of the shop's callers, to show: what was asked, what came of it, how fast."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final

KEPT: Final = 40
LONGEST: Final = 200
SHOWN: Final = frozenset(
    {
        "/recommendations",
        "/recommendations/batch",
        "/similar-items",
        "/popular",
        "/search",
        "/items/{item_id}",
        "/users/{user_id}/history",
        "/feedback",
    }
)
"""Routes of callers; what dashboards and probes ask is left out."""


class RecentRequests:
    """A bounded memory; the newest first."""

    def __init__(self) -> None:
        self._rows: deque[tuple[float, str, str, bytes, int, float]] = deque(maxlen=KEPT)

    def add(
        self, method: str, route: str, target: tuple[str, bytes], status: int, seconds: float
    ) -> None:
        """Remember a request. `target`: path and query string."""
        if route in SHOWN:
            self._rows.appendleft((time.time(), method, *target, status, seconds))

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "time": at,
                "method": method,
                "target": _target(path, query),
                "status": status,
                "ms": round(seconds * 1000, 2),
            }
            for at, method, path, query, status, seconds in list(self._rows)
        ]


def _target(path: str, query: bytes) -> str:
    text = f"{path}?{query.decode('latin-1')}" if query else path
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"

"""What came about within the last seconds, from counts that only grow."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)


class Moving(Generic[Name]):
    """The growth of named counts over the newest `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._past: deque[tuple[float, dict[Name, float]]] = deque()

    def grown(self, time: float, counts: Mapping[Name, float]) -> dict[Name, float]:
        """Take the counts of a moment, later than the last; say what each has grown by.

        Where a count has fallen, who counts has begun anew: so does this.
        """
        if self._past and any(
            counts.get(name, 0.0) < was for name, was in self._past[-1][1].items()
        ):
            self._past.clear()
        self._past.append((time, dict(counts)))
        while len(self._past) > 1 and self._past[1][0] <= time - self._seconds:
            self._past.popleft()
        base = self._past[0][1]
        return {name: count - base.get(name, 0.0) for name, count in counts.items()}

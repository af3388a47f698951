"""What may be in one list: not what was seen, not what is excluded, only what is inside the category."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import IntArray
from afterclick.retrieval import not_in
from serving.state.snapshot import ServingSnapshot


def nothing() -> IntArray:
    """No items."""
    return np.empty(0, np.int32)


@dataclass(frozen=True)
class Choice:
    """The bounds of one list, in item indices."""

    n: int
    seen: IntArray = field(default_factory=nothing)
    excluded: IntArray = field(default_factory=nothing)
    inside: IntArray | None = None
    """Only these; None allows all."""
    wanted: IntArray = field(default_factory=nothing)
    """Ranked although no source brings them, where they may be shown."""
    later: bool = False
    """A later page: it may come to an end."""

    def fitting(self, items: IntArray, *unwanted: IntArray) -> IntArray:
        """`items` in their order, less what may not be shown, and less `unwanted`."""
        items = without(items, np.concatenate([self.seen, self.excluded, *unwanted]))
        return items if self.inside is None else items[np.isin(items, self.inside)]

    def also(self, *unwanted: IntArray) -> IntArray:
        """What is wanted and may be shown, less `unwanted`."""
        return self.fitting(self.wanted, *unwanted) if len(self.wanted) else self.wanted

    def though_seen(self) -> Choice:
        """The same, with seen items allowed: better than no list."""
        return replace(self, seen=nothing())

    def trending(self, snapshot: ServingSnapshot) -> IntArray:
        """What trends, hottest first."""
        return snapshot.trending if self.inside is None else _ordered(self.inside, snapshot.heat)

    def popular(self, snapshot: ServingSnapshot) -> IntArray:
        """What is popular, most popular first."""
        return (
            snapshot.popular if self.inside is None else _ordered(self.inside, snapshot.popularity)
        )


def without(items: IntArray, unwanted: IntArray) -> IntArray:
    """`items` in their order, less those in `unwanted`."""
    return items[not_in(items, unwanted)] if len(unwanted) else items


def _ordered(items: IntArray, scores: NDArray[np.float64] | NDArray[np.int64]) -> IntArray:
    items = items[scores[items] > 0]
    return items[np.argsort(-scores[items], kind="stable")]

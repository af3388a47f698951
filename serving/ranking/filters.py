"""Filters of a list: which items meet conditions on the catalogue's fields, remembered until it changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from afterclick.arrays import IntArray
from serving.state.catalogue_query import matching
from serving.state.item_catalogue import Catalogue
from serving.state.snapshot import ServingSnapshot

KEPT = 64
"""Filters whose items are kept, for one catalogue and item space."""


class Filters:
    """Lives on the event loop."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._of: tuple[int, int, str] | None = None
        self._found: dict[frozenset[str], IntArray] = {}

    def inside(
        self, snapshot: ServingSnapshot, category: str | None, conditions: Sequence[str]
    ) -> IntArray | None:
        """Item indices of what is in a category and meets conditions; None where neither is asked for."""
        found = None if category is None else snapshot.indices(self._catalogue.category(category))
        if not conditions:
            return found
        filtered = self.indices(snapshot, conditions)
        return filtered if found is None else np.intersect1d(found, filtered)

    def indices(self, snapshot: ServingSnapshot, conditions: Sequence[str]) -> IntArray:
        """Item indices of what meets every field that the conditions name."""
        of = (self._catalogue.version, len(snapshot.heat), snapshot.loaded.version)
        if of != self._of:
            self._found, self._of = {}, of
        key = frozenset(conditions)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = snapshot.indices(matching(self._catalogue, conditions))
            if len(self._found) > KEPT:
                del self._found[next(iter(self._found))]
        return found

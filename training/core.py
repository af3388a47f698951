"""The k-core of users and items: what is left when all with fewer than k fall out, again and again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Core:
    """Which interactions are in the k-core, and how the others fell out."""

    inside: NDArray[np.bool_]
    """(r,)"""
    user_below: int
    """Interactions of users who had fewer than k left."""
    item_below: int
    """Interactions of items that had fewer than k left."""
    rounds: int


def k_core(users: NDArray[np.integer], items: NDArray[np.integer], k: int) -> Core:
    """The k-core of the pairs users[i], items[i] (each (r,), indices from 0), items first in each round."""
    inside = np.ones(len(users), bool)
    fallen = {"user": 0, "item": 0}
    rounds, left = 0, len(users)
    while left:
        rounds += 1
        before = left
        for kind, column in (("item", items), ("user", users)):
            counts = np.bincount(column[inside])
            at = np.flatnonzero(inside)
            inside[at[counts[column[at]] < k]] = False
            now = int(np.count_nonzero(inside))
            fallen[kind] += left - now
            left = now
        if left == before:
            break
    return Core(inside, fallen["user"], fallen["item"], rounds)

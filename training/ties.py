"""An order of equal times that tells nothing: by a hash of user id and item id.

Interactions of one user at the same time are a set. Most datasets have the resolution of a day, so
most sets are the purchases of a day. The order of a file, of item ids or of popularity within a
set is no order of events; a model that learns from it learns how the file was sorted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from afterclick.arrays import IndexArray, IntArray


def tie_hash(
    user_ids: NDArray[np.str_], user: IntArray, item_ids: NDArray[np.str_], item: IntArray
) -> NDArray[np.uint64]:
    """(n,) a hash of the user's and the item's id: another order of the items for every user.

    `user` and `item` (n,) index `user_ids` and `item_ids`. The same in every process.
    """
    return _mixed(_hashed(user_ids)[user] ^ _mixed(_hashed(item_ids)[item]))


def runs(*keys: NDArray[Any]) -> tuple[IndexArray, IndexArray]:
    """(n,) start and end of the run of equal keys (each (n,)) that each row is in."""
    first = np.ones(len(keys[0]), bool)
    first[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    starts = np.flatnonzero(first)
    run = np.cumsum(first) - 1
    return starts[run], np.append(starts[1:], len(first))[run]


def _hashed(ids: NDArray[np.str_]) -> NDArray[np.uint64]:
    return np.asarray(pd.util.hash_array(ids.astype(object), categorize=False))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): all bits depend on all."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

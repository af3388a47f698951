"""Interactions as arrays, and the catalogue: the input of every model.

reads   parquet  <home>/etl/<version>/catalogue

Interactions of one user at the same time are a set. Most datasets have the resolution of a day, so
most sets are the purchases of a day. The order of a file, of item ids or of popularity within a
set is no order of events; a model that learns from it learns how the file was sorted. So equal
times are ordered by a hash of user id and item id (`tie_hash`), which tells nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import sparse

from afterclick.arrays import IndexArray, IntArray
from afterclick.errors import BadDataset


class TooFewInteractions(BadDataset):
    """The interactions do not suffice to fit a model."""


@dataclass(frozen=True)
class Interactions:
    """One row per user and item: their first positive interaction, ordered by time.

    `user` and `item` index `user_ids` and `item_ids`.
    """

    user_ids: NDArray[np.str_]
    """(n_users,)"""
    item_ids: NDArray[np.str_]
    """(n_items,)"""
    user: NDArray[np.int32]
    """(n,) user_index"""
    item: NDArray[np.int32]
    """(n,) item_index"""
    time_ms: NDArray[np.int64]
    """(n,) event time, ascending"""
    weight: NDArray[np.float32]
    """(n,) weight of the action, > 0"""

    def __len__(self) -> int:
        return len(self.user)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_users, n_items)"""
        return len(self.user_ids), len(self.item_ids)

    def where(self, mask: NDArray[np.bool_]) -> Interactions:
        """The rows where `mask` (n,) is true. Ids and indices stay."""
        return replace(
            self,
            user=self.user[mask],
            item=self.item[mask],
            time_ms=self.time_ms[mask],
            weight=self.weight[mask],
        )

    def before(self, time_ms: int) -> Interactions:
        """The rows with an event time before `time_ms`."""
        return self.where(self.time_ms < time_ms)

    def matrix(self) -> Any:
        """(n_users, n_items) scipy CSR of float32 ones."""
        ones = np.ones(len(self), np.float32)
        return sparse.csr_matrix((ones, (self.user, self.item)), shape=self.shape)

    def item_counts(self) -> NDArray[np.int64]:
        """(n_items,) rows per item."""
        return np.bincount(self.item, minlength=len(self.item_ids))

    def user_counts(self) -> NDArray[np.int64]:
        """(n_users,) rows per user."""
        return np.bincount(self.user, minlength=len(self.user_ids))

    def served(self, min_rows: int) -> Interactions:
        """Only the items with at least `min_rows` rows, renumbered densely in the same order."""
        return self.choose(self.item_counts() >= min_rows)

    def choose(self, mask: NDArray[np.bool_]) -> Interactions:
        """Only the items where `mask` (n_items,) is true, renumbered densely in the same order."""
        index = np.cumsum(mask, dtype=np.int32) - 1
        rows = self.where(mask[self.item])
        return replace(rows, item_ids=self.item_ids[mask], item=index[rows.item])

    def also(self, item_ids: Iterable[str]) -> Interactions:
        """With these items appended; known items keep their index."""
        return replace(self, item_ids=extended(self.item_ids, item_ids))

    def core(self, k: int) -> Interactions:
        """The k-core: rows whose user and item both have at least `k` rows in it."""
        return self.where(k_core(self.user, self.item, k).inside)


@dataclass(frozen=True)
class KCore:
    """The rows of a k-core, and why the others were removed."""

    inside: NDArray[np.bool_]
    """(n,)"""
    user_below: int
    """Rows removed because their user had fewer than k left."""
    item_below: int
    """Rows removed because their item had fewer than k left."""
    rounds: int


def k_core(users: NDArray[np.integer], items: NDArray[np.integer], k: int) -> KCore:
    """The k-core of the pairs users[i], items[i] (each (n,), indices from 0).

    Removes all pairs of items, then of users, with fewer than `k` pairs, until nothing changes.
    """
    inside = np.ones(len(users), bool)
    removed = {"user": 0, "item": 0}
    rounds, remaining = 0, len(users)
    while remaining:
        rounds += 1
        before = remaining
        for kind, column in (("item", items), ("user", users)):
            counts = np.bincount(column[inside])
            rows = np.flatnonzero(inside)
            inside[rows[counts[column[rows]] < k]] = False
            now = int(np.count_nonzero(inside))
            removed[kind] += remaining - now
            remaining = now
        if remaining == before:
            break
    return KCore(inside, removed["user"], removed["item"], rounds)


def joined(first: Interactions, second: Interactions) -> Interactions:
    """The rows of both, which have the same ids; of a user and item in both the earlier one."""
    columns = {
        name: np.concatenate([getattr(first, name), getattr(second, name)])
        for name in ("user", "item", "time_ms", "weight")
    }
    return first_of_pairs(replace(first, **columns))


def first_of_pairs(rows: Interactions) -> Interactions:
    """Rows in any order by time, then by a hash; of each user and item the first."""
    tie = tie_hash(rows.user_ids, rows.user, rows.item_ids, rows.item)
    order = np.lexsort((tie, rows.time_ms))
    pair = rows.user[order].astype(np.int64) * rows.shape[1] + rows.item[order]
    order = order[np.sort(np.unique(pair, return_index=True)[1])]
    columns = ("user", "item", "time_ms", "weight")
    return replace(rows, **{name: getattr(rows, name)[order] for name in columns})


def by_user_and_time(rows: Interactions) -> IndexArray:
    """(n,) the rows by user, then time, then a hash."""
    tie = tie_hash(rows.user_ids, rows.user, rows.item_ids, rows.item)
    return np.lexsort((tie, rows.time_ms, rows.user))


def load_catalogue(folder: Path) -> dict[str, tuple[str | None, tuple[str, ...]]]:
    """item_id → (title, categories) of an ETL version."""
    rows = pq.read_table(folder / "catalogue").to_pylist()
    return {row["item_id"]: (row["title"], tuple(row["categories"] or ())) for row in rows}


def extended(item_ids: NDArray[np.str_], more: Iterable[str]) -> NDArray[np.str_]:
    """The ids with those of `more` that are new appended, in sorted order."""
    extra = sorted(set(more) - set(item_ids.tolist()))
    return np.concatenate([item_ids, np.asarray(extra, np.str_)]) if extra else item_ids


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

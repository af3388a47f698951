"""Interactions in arrays: what every model is fitted on.

reads   parquet  <home>/etl/<version>/interactions, users, items
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import sparse

from training.core import k_core


@dataclass(frozen=True)
class Interactions:
    """One row per user and item: their first positive interaction, in order of time.

    `user` and `item` are indices into `user_ids` and `item_ids`; items are ordered by descending count.
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
    """(n,) what the action counts for, > 0"""

    def __len__(self) -> int:
        return len(self.user)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_users, n_items)"""
        return len(self.user_ids), len(self.item_ids)

    def where(self, keep: NDArray[np.bool_]) -> Interactions:
        """The rows where `keep` (n,) is true. Ids and indices stay."""
        return replace(
            self,
            user=self.user[keep],
            item=self.item[keep],
            time_ms=self.time_ms[keep],
            weight=self.weight[keep],
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

    def served(self, least: int) -> Interactions:
        """Only the items with `least` rows or more, renumbered densely in the same order."""
        return self.choose(self.item_counts() >= least)

    def choose(self, keep: NDArray[np.bool_]) -> Interactions:
        """Only the items that `keep` (n_items,) chooses, renumbered densely in the same order."""
        index = np.cumsum(keep, dtype=np.int32) - 1
        rows = self.where(keep[self.item])
        return replace(rows, item_ids=self.item_ids[keep], item=index[rows.item])

    def also(self, item_ids: Iterable[str]) -> Interactions:
        """With these items too, after the others; those that are there already stay where they are."""
        extra = sorted(set(item_ids) - set(self.item_ids.tolist()))
        if not extra:
            return self
        return replace(self, item_ids=np.concatenate([self.item_ids, np.asarray(extra, np.str_)]))

    def core(self, k: int) -> Interactions:
        """The rows in which every user and every item has `k` or more."""
        return self.where(k_core(self.user, self.item, k).inside)


def load(folder: Path) -> Interactions:
    """The interactions that the ETL wrote in `folder`."""
    rows = pq.read_table(
        folder / "interactions", columns=["user_index", "item_index", "time_ms", "weight"]
    )
    time_ms = rows["time_ms"].to_numpy()
    user, item = rows["user_index"].to_numpy(), rows["item_index"].to_numpy()
    order = np.lexsort((item, user, time_ms))
    return Interactions(
        user_ids=_ids(folder / "users", "user"),
        item_ids=_ids(folder / "items", "item"),
        user=user[order].astype(np.int32),
        item=item[order].astype(np.int32),
        time_ms=time_ms[order].astype(np.int64),
        weight=rows["weight"].to_numpy()[order].astype(np.float32),
    )


def fingerprint(folder: Path) -> str:
    """A hash of the interactions in `folder`, the same for the same rows in any order of files."""
    rows = load(folder)
    digest = hashlib.sha256()
    for array in (rows.user, rows.item, rows.time_ms, rows.weight):
        digest.update(array.tobytes())
    for ids in (rows.user_ids, rows.item_ids):
        digest.update("\n".join(ids.tolist()).encode())
    return digest.hexdigest()[:16]


def _ids(folder: Path, kind: str) -> NDArray[np.str_]:
    table = pq.read_table(folder, columns=[f"{kind}_index", f"{kind}_id"])
    ids = np.asarray(table[f"{kind}_id"].to_pylist(), np.str_)
    return ids[np.argsort(table[f"{kind}_index"].to_numpy())]

"""A published split (train, optional validation, test), and full ranking on it.

reads   csv  <folder>/train.csv, valid.csv (optional), test.csv, also as .csv.gz, with the header
             user_id,item_id[,timestamp]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from afterclick.arrays import BoolArray, IntArray
from afterclick.errors import BadDataset
from training.evaluation import list_metrics
from training.evaluation.measure import top_n

DEPTH = 20
"""Ranks of a list that are measured."""
Scores = Callable[[NDArray[np.intp]], NDArray[np.floating]]
"""user indices (b,) → (b, n_items)"""


@dataclass(frozen=True)
class PublishedSplit:
    """The rows of a split as matrices of one shape."""

    train: Any
    valid: Any
    test: Any
    inner: bool
    """The split has no validation rows; they were cut from the training rows."""
    among: Any = None
    """(n_users, n_items) the given negatives of each user; None ranks every item."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n_users, n_items)"""
        return int(self.train.shape[0]), int(self.train.shape[1])


def load(folder: Path, seed: int = 42, negatives: Path | None = None) -> PublishedSplit:
    """The split in a folder, with the given negatives. Raises BadDataset for missing or malformed
    files."""
    frames = {name: _read(folder, name) for name in ("train", "valid", "test")}
    for name in ("train", "test"):
        frame = frames[name]
        if frame is None or frame.empty:
            raise BadDataset(f"{folder}: no {name}.csv (or .csv.gz) with rows")
    given = None if negatives is None else read_negatives(negatives)
    known = [f for f in (*frames.values(), given) if f is not None]
    users = pd.Index(pd.unique(pd.concat([f["user_id"] for f in known])))
    items = pd.Index(pd.unique(pd.concat([f["item_id"] for f in known])))
    matrices = {
        name: _matrix(f, users, items) if f is not None and len(f) else None
        for name, f in frames.items()
    }
    among = None if given is None else _matrix(given, users, items)
    train, valid = frames["train"], matrices["valid"]
    if valid is not None:
        return PublishedSplit(matrices["train"], valid, matrices["test"], inner=False, among=among)
    assert train is not None
    late = _held_out(train, seed)
    inner = _matrix(train[~late], users, items), _matrix(train[late], users, items)
    return PublishedSplit(inner[0], inner[1], matrices["test"], inner=True, among=among)


@dataclass(frozen=True)
class RankingTask:
    """Rank items for the users who have a target, and measure the lists."""

    seen: Any
    """(n_users, n_items) CSR: items that are never ranked"""
    target: Any
    """(n_users, n_items) CSR: the relevant items"""
    among: Any = None
    """(n_users, n_items) CSR: rank a user's targets among these alone; None: among all items"""
    seed: int = 42
    max_users: int | None = None

    def measure(self, scores: Scores) -> dict[str, float]:
        """Recall, NDCG, HR and F1 at 10 and 20: the mean over users with a target."""
        users = np.flatnonzero(np.diff(self.target.indptr))
        if self.max_users is not None and len(users) > self.max_users:
            random = np.random.default_rng(self.seed)
            users = np.sort(random.choice(users, self.max_users, replace=False))
        relevant = np.diff(self.target.indptr)[users].astype(np.int32)
        hits = self._hits(self.lists(scores, users), users)
        metrics = {
            "recall": list_metrics.recall,
            "ndcg": list_metrics.ndcg,
            "hr": list_metrics.hit_rate,
            "f1": list_metrics.f1,
        }
        return {
            f"{name}@{k}": float(metric(hits, relevant, k).mean())
            for k in (10, 20)
            for name, metric in metrics.items()
        }

    def lists(self, scores: Scores, users: NDArray[np.intp]) -> IntArray:
        """(len(users), DEPTH) the best items, ties broken at random; −1 pads."""
        random, n_items = np.random.default_rng(self.seed), self.target.shape[1]
        among = None if self.among is None else self.among + self.target
        items = np.arange(n_items, dtype=np.int32)
        step = max(16, min(1024, 20_000_000 // max(n_items, 1)))
        lists = np.full((len(users), DEPTH), -1, np.int32)
        for start in range(0, len(users), step):
            batch = users[start : start + step]
            values = np.array(scores(batch), np.float32)
            values[self.seen[batch].nonzero()] = -np.inf
            if among is not None:
                values[among[batch].toarray() == 0] = -np.inf
            lists[start : start + step] = top_n(values, items, random, DEPTH)
        return lists

    def _hits(self, lists: IntArray, users: NDArray[np.intp]) -> BoolArray:
        """(q, DEPTH) whether each listed item is a target, by a search among sorted (user, item)
        pairs."""
        n_items = self.target.shape[1]
        rows = self.target[users].tocoo()
        targets = np.sort(rows.row.astype(np.int64) * n_items + rows.col)
        pairs = np.arange(len(users), dtype=np.int64)[:, None] * n_items + lists
        found = np.minimum(np.searchsorted(targets, pairs), max(len(targets) - 1, 0))
        return np.asarray((targets[found] == pairs) & (lists >= 0))


def _read(folder: Path, name: str) -> pd.DataFrame | None:
    path = next(
        (p for p in (folder / f"{name}.csv", folder / f"{name}.csv.gz") if p.is_file()), None
    )
    return None if path is None else _read_csv(path)


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        # ids may be NA or null; only an empty one is missing
        kinds, no_id = {"user_id": str, "item_id": str}, [""]
        frame = pd.read_csv(
            path, dtype=kinds, keep_default_na=False, na_values=no_id, encoding="utf-8-sig"
        )
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise BadDataset(f"{path}: cannot be read as CSV: {error}") from None
    if not {"user_id", "item_id"} <= set(frame.columns):
        raise BadDataset(f"{path}: expected the header user_id,item_id[,timestamp]")
    return frame.dropna(subset=["user_id", "item_id"])


def read_negatives(path: Path) -> pd.DataFrame:
    """Rows user_id, item_id: from a CSV with that header, or the NCF paper's
    `(user,item)<tab>negative…`.

    Raises BadDataset.
    """
    try:
        lines = path.read_text().splitlines() if path.suffix != ".gz" else []
    except (OSError, UnicodeDecodeError) as error:
        raise BadDataset(f"{path}: cannot be read as negatives: {error}") from None
    if not lines or not lines[0].startswith("("):
        return _read_csv(path)
    rows = []
    for number, line in enumerate(filter(None, lines), 1):
        pair, *items = line.split("\t")
        user, comma, _ = pair.strip("()").partition(",")
        if not comma or not items:
            raise BadDataset(
                f"{path}, line {number}: expected (user,item) and negatives, tabs between them"
            )
        rows += [(user.strip(), item.strip()) for item in items]
    return pd.DataFrame(rows, columns=["user_id", "item_id"], dtype=str)


def _matrix(frame: pd.DataFrame, users: pd.Index, items: pd.Index) -> Any:
    row, column = (
        users.get_indexer(pd.Index(frame["user_id"])),
        items.get_indexer(pd.Index(frame["item_id"])),
    )
    ones = np.ones(len(frame), np.float32)
    matrix = sparse.csr_matrix((ones, (row, column)), shape=(len(users), len(items)))
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def _held_out(train: pd.DataFrame, seed: int, share: float = 0.1) -> NDArray[np.bool_]:
    """About a tenth of each user's rows, one at least of those with three: the newest.

    By chance among those of the same time, and where there are no times.
    """
    order = np.random.default_rng(seed).random(len(train))
    if "timestamp" in train.columns:  # numbers, or 2014-06-01
        order += train["timestamp"].rank(method="dense").to_numpy(np.float64)
    ranked = pd.Series(order, index=train.index)
    by_user = train["user_id"]
    from_end = ranked.groupby(by_user).rank(method="first", ascending=False)
    count = by_user.map(by_user.value_counts())
    held_out = (from_end <= np.maximum(1, np.floor(share * count))) & (count >= 3)
    return held_out.to_numpy(bool)

"""A published split: train, optional validation, test.

reads   csv  <folder>/train.csv, valid.csv (optional), test.csv, each also as .csv.gz, with the header
             user_id,item_id[,timestamp]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from afterclick.errors import BadDataset


@dataclass(frozen=True)
class Split:
    """The rows of a split as matrices of one shape."""

    train: Any
    valid: Any
    test: Any
    inner: bool
    """The validation rows were cut from the training rows, for the split has none of its own."""
    among: Any = None
    """(n_users, n_items) the given negatives of each user; None ranks every item."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n_users, n_items)"""
        return int(self.train.shape[0]), int(self.train.shape[1])


def load(folder: Path, seed: int = 42, negatives: Path | None = None) -> Split:
    """The split in a folder, with the given negatives. Raises BadDataset for what is missing or malformed."""
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
        return Split(matrices["train"], valid, matrices["test"], inner=False, among=among)
    assert train is not None
    late = _held(train, seed)
    inner = _matrix(train[~late], users, items), _matrix(train[late], users, items)
    return Split(inner[0], inner[1], matrices["test"], inner=True, among=among)


def _read(folder: Path, name: str) -> pd.DataFrame | None:
    path = next(
        (p for p in (folder / f"{name}.csv", folder / f"{name}.csv.gz") if p.is_file()), None
    )
    return None if path is None else _read_csv(path)


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        # an id may be NA or null; only an empty one is none
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
    """Rows user_id, item_id: from a CSV with that header, or the NCF paper's `(user,item)<tab>negative…`.

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


def _held(train: pd.DataFrame, seed: int, share: float = 0.1) -> NDArray[np.bool_]:
    """About a tenth of each user's rows, one at least of those with three: the newest, or by chance."""
    order = np.random.default_rng(seed).random(len(train))
    if "timestamp" in train.columns:
        order = np.asarray(
            train["timestamp"].rank(method="dense"), np.float64
        )  # numbers, or 2014-06-01
    ranked = pd.Series(order, index=train.index)
    by_user = train["user_id"]
    from_end = ranked.groupby(by_user).rank(method="first", ascending=False)
    count = by_user.map(by_user.value_counts())
    held = (from_end <= np.maximum(1, np.floor(share * count))) & (count >= 3)
    return held.to_numpy(bool)

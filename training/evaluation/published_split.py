"""A published split (train, optional validation, test), and full ranking on it.

reads   csv  <folder>/train.csv, valid.csv (optional), test.csv, also as .csv.gz, with the header
             user_id,item_id[,timestamp[,history]]. `parent_asin` is read as `item_id`, and the
             files may be named <Category>.train.csv: the splits of Amazon Reviews 2023 as published

`timestamp` is seconds or milliseconds since 1970, or a date. With it a user's items have an order,
and items of equal times are a set; without it all of a user's items are one set. `history` holds a
user's earlier items, oldest first, spaces between them; those without a row of their own are added
to the training rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from afterclick.arrays import BoolArray, FloatArray, Int64Array, IntArray
from afterclick.compiled import compiled
from afterclick.errors import BadDataset
from training.evaluation import list_metrics
from training.interactions import Interactions, first_of_pairs, joined, runs

DEPTH = 20
"""Ranks of a list that are measured."""
Scores = Callable[[NDArray[np.intp]], NDArray[np.floating]]
"""user indices (b,) → (b, n_items)"""
_FILES = ("train", "valid", "test")
_LATEST_S = 1e11
"""Larger timestamps are milliseconds."""


@dataclass(frozen=True)
class PublishedSplit:
    """The rows of a split, with the same users and items."""

    train: Interactions
    valid: Interactions
    test: Any
    """(n_users, n_items) CSR of ones"""
    inner: bool
    """The split has no validation rows; they were cut from the training rows."""
    timed: bool = False
    """Training and validation rows have times."""
    among: Any = None
    """(n_users, n_items) the given negatives of each user; None ranks every item."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n_users, n_items)"""
        return self.train.shape

    @cached_property
    def history(self) -> Interactions:
        """The rows known before the test: with the validation rows if they have times or were cut
        from the training rows."""
        return self.all_rows if self.inner or self.timed else self.train

    @cached_property
    def all_rows(self) -> Interactions:
        """The training and validation rows."""
        return joined(self.train, self.valid)


def load(folder: Path, seed: int = 42, negatives: Path | None = None) -> PublishedSplit:
    """The split in a folder, with the given negatives. Raises BadDataset for missing or malformed
    files."""
    frames = {name: _read_csv(path) for name, path in _files(folder).items()}
    for name in ("train", "test"):
        if name not in frames or frames[name].empty:
            raise BadDataset(f"{folder}: no {name}.csv (or .csv.gz) with rows")
    frames["train"] = pd.concat([_earlier_rows(frames), frames["train"]], ignore_index=True)
    given = None if negatives is None else read_negatives(negatives)
    known = [*frames.values(), *([] if given is None else [given])]
    users = pd.Index(pd.unique(pd.concat([f["user_id"] for f in known])))
    items = pd.Index(pd.unique(pd.concat([f["item_id"] for f in known])))
    train = _interactions(frames["train"], users, items)
    timed = all("time_ms" in frames[name] for name in ("train", "valid") if name in frames)
    inner = "valid" not in frames or frames["valid"].empty
    if inner:
        late = _held_out(train, seed)
        train, valid = train.where(~late), train.where(late)
    else:
        valid = _interactions(frames["valid"], users, items)
    test = _interactions(frames["test"], users, items).matrix()
    among = None if given is None else _interactions(given, users, items).matrix()
    return PublishedSplit(train, valid, test, inner, timed, among)


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
        step = max(16, min(1024, 20_000_000 // max(n_items, 1)))
        lists = np.full((len(users), DEPTH), -1, np.int32)
        for start in range(0, len(users), step):
            batch = users[start : start + step]
            values = np.array(scores(batch), np.float32)
            values[self.seen[batch].nonzero()] = -np.inf
            if among is not None:
                values[among[batch].toarray() == 0] = -np.inf
            order = random.permutation(n_items).astype(np.int32)
            lists[start : start + step] = best_columns(values, order, DEPTH)
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


@compiled
def best_columns(scores: FloatArray, order: IntArray, count: int) -> IntArray:
    """(q, count) int32 columns of the best scores (q, n) of each row, best first; -1 pads, and -inf
    is never listed. Of equal scores the first in `order` (n,) comes first."""
    found = np.full((len(scores), count), np.int32(-1), np.int32)
    best = np.empty(count, scores.dtype)
    for row in range(len(scores)):
        best[:] = -np.inf
        for column in order:
            score = scores[row, column]
            if score > best[count - 1]:
                place = count - 1
                while place > 0 and score > best[place - 1]:
                    best[place] = best[place - 1]
                    found[row, place] = found[row, place - 1]
                    place -= 1
                best[place] = score
                found[row, place] = column
    return found


def _files(folder: Path) -> dict[str, Path]:
    """The files of a split by train, valid and test. Raises BadDataset for several splits."""
    found = {}
    for name in _FILES:
        plain = [folder / f"{name}.csv", folder / f"{name}.csv.gz"]
        paths = [path for path in plain if path.is_file()][:1]
        paths = paths or sorted(folder.glob(f"*.{name}.csv")) + sorted(
            folder.glob(f"*.{name}.csv.gz")
        )
        if len(paths) > 1:
            several = ", ".join(path.name for path in paths)
            raise BadDataset(f"{folder}: several splits ({several}); give a folder with one")
        if paths:
            found[name] = paths[0]
    return found


def _read_csv(path: Path) -> pd.DataFrame:
    """Columns user_id, item_id, and where the file has them time_ms and history."""
    try:
        # ids may be NA or null; only an empty one is missing
        kinds = dict.fromkeys(("user_id", "item_id", "parent_asin", "history"), str)
        frame = pd.read_csv(
            path, dtype=kinds, keep_default_na=False, na_values=[""], encoding="utf-8-sig"
        )
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise BadDataset(f"{path}: cannot be read as CSV: {error}") from None
    if "item_id" not in frame:
        frame = frame.rename(columns={"parent_asin": "item_id"})
    if not {"user_id", "item_id"} <= set(frame.columns):
        raise BadDataset(f"{path}: expected the header user_id,item_id[,timestamp]")
    frame = frame.dropna(subset=["user_id", "item_id"])
    if "timestamp" in frame:
        frame["time_ms"] = _time_ms(frame["timestamp"], path)
    return frame[[c for c in ("user_id", "item_id", "time_ms", "history") if c in frame]]


def _time_ms(timestamps: pd.Series[Any], path: Path) -> Int64Array:
    """(n,) milliseconds since 1970. Raises BadDataset for a timestamp that is missing or no
    time."""
    try:
        times = timestamps.to_numpy(np.float64)
        times = times * (1.0 if len(times) and np.nanmax(times) > _LATEST_S else 1000.0)
    except ValueError:
        dates = pd.to_datetime(timestamps, errors="coerce", utc=True, format="ISO8601")
        times = dates.astype("datetime64[ms, UTC]").astype(np.int64).to_numpy(np.float64)
        times[dates.isna()] = np.nan
    if not np.isfinite(times).all():
        row = timestamps.iloc[int(np.flatnonzero(~np.isfinite(times))[0])]
        raise BadDataset(f"{path}: timestamp {row!r}: expected seconds, milliseconds or a date")
    return times.astype(np.int64)


def _earlier_rows(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Rows for the items of the `history` columns that have none, before the user's first row.

    A user's longest history counts; that of a test row only without a validation row.
    """
    asked = {name: frame for name, frame in frames.items() if "history" in frame}
    if not asked:
        return pd.DataFrame(columns=["user_id", "item_id"], dtype=str)
    if "test" in asked and "valid" in frames:
        newer = asked["test"]["user_id"].isin(frames["valid"]["user_id"])
        asked["test"] = asked["test"][~newer]
    histories = pd.concat(asked.values())[["user_id", "history"]].dropna()
    histories["length"] = histories["history"].str.len()
    longest = histories.sort_values("length").drop_duplicates("user_id", keep="last")
    items = longest.assign(item_id=longest["history"].str.split()).explode("item_id").dropna()
    items["from_end"] = items.groupby("user_id").cumcount(ascending=False) + 1
    rows = pd.concat(frames.values())
    known = pd.MultiIndex.from_frame(rows[["user_id", "item_id"]])
    items = items[~pd.MultiIndex.from_frame(items[["user_id", "item_id"]]).isin(known)]
    if "time_ms" in rows:
        first = rows.groupby("user_id")["time_ms"].min()
        items["time_ms"] = (items["user_id"].map(first) - items["from_end"]).astype(np.int64)
    return items[[c for c in ("user_id", "item_id", "time_ms") if c in items]]


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
        return _read_csv(path)[["user_id", "item_id"]]
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


def _interactions(frame: pd.DataFrame, users: pd.Index, items: pd.Index) -> Interactions:
    """The first row of each user and item, by time; without times all are at 0."""
    user = users.get_indexer(pd.Index(frame["user_id"])).astype(np.int32)
    item = items.get_indexer(pd.Index(frame["item_id"])).astype(np.int32)
    user_ids, item_ids = np.asarray(users, np.str_), np.asarray(items, np.str_)
    time_ms = np.zeros(len(frame), np.int64)
    if "time_ms" in frame:
        time_ms = frame["time_ms"].to_numpy(np.int64)
    ones = np.ones(len(frame), np.float32)
    return first_of_pairs(Interactions(user_ids, item_ids, user, item, time_ms, ones))


def _held_out(rows: Interactions, seed: int, share: float = 0.1) -> BoolArray:
    """(n,) about a tenth of each user's rows, one at least of those with three: the newest.

    By chance among those of the same time, and where there are no times.
    """
    chance = np.random.default_rng(seed).random(len(rows))
    order = np.lexsort((chance, -rows.time_ms, rows.user))
    start, end = runs(rows.user[order])
    rank, count = np.arange(len(order)) - start, end - start
    held_out = np.zeros(len(rows), bool)
    held_out[order] = (rank < np.maximum(1, np.floor(share * count))) & (count >= 3)
    return held_out

"""The interactions to evaluate on: a dataset on disk, or the tables that the ETL made of the log.

reads   csv, parquet  user_id, item_id, timestamp (s); optional: rating, liked (1: 4 stars or more,
                      0: fewer), time_quality (`exact`)
        csv           an official ratings file, without a header: user and item, rating, timestamp
        csv           items.csv in the same folder: item_id, title, categories
        parquet       <home>/etl/<version>/events, users, items
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from afterclick.amazon_ids import user_and_item
from afterclick.arrays import Float64Array, FloatArray
from afterclick.errors import BadDataset
from afterclick.events import Action
from afterclick.signals import STARS, Signals
from training import event_log
from training.event_log import EventLog
from training.interactions import Interactions
from training.models.content_vectors import ItemTexts

_NAMES = ("reviews.csv.gz", "reviews.csv", "reviews.parquet", "ratings_Electronics.csv")
_LIKED_STARS, _NOT_LIKED_STARS = 4, 2
"""Stars that a review counts as if only `liked` is known."""
_SAMPLED = 20
"""Rows of a file without a header by which users and items are told apart."""
_NEEDED = {"user_id", "item_id", "timestamp"}


@dataclass(frozen=True)
class Reviews:
    """A log of reviews, and the texts of the items."""

    log: EventLog
    texts: ItemTexts


def load(path: Path, signals: Signals | None = None) -> Reviews:
    """Read a dataset (a folder or a file). Without `signals` each row counts 1. Raises
    BadDataset."""
    file = _file(path)
    try:
        frame = _read(file)
    except (OSError, ValueError, KeyError) as error:
        raise BadDataset(
            f"{file}: cannot be read as reviews: {str(error).splitlines()[0]}"
        ) from None
    frame = frame.dropna(subset=["user_id", "item_id", "timestamp"])
    frame = frame.sort_values("timestamp", kind="stable").drop_duplicates(["user_id", "item_id"])
    if frame.empty:
        raise BadDataset(f"{file}: contains no reviews")
    quality = frame.get("time_quality")
    trusted = np.ones(len(frame), bool) if quality is None else (quality == "exact").to_numpy(bool)
    stars = _stars(frame)
    weights = np.ones(1 + len(STARS), np.float32)
    if signals:
        weights[:] = signals.actions[Action.REVIEW], *(signals.stars[n] for n in STARS)
    rows = _interactions(frame, weights[stars])
    log = EventLog.of(rows, trusted, stars=stars)
    return Reviews(log, _texts(file.parent / "items.csv"))


def from_etl(folder: Path, texts: ItemTexts) -> Reviews:
    """The tables of the ETL: every event is trusted."""
    return Reviews(event_log.load(folder), texts)


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in _NAMES:
        if (path / name).is_file():
            return path / name
    raise BadDataset(
        f"{path}: no reviews; expected one of {', '.join(_NAMES)} or a file with those columns"
    )


def _read(file: Path) -> pd.DataFrame:
    if file.suffix == ".parquet":
        frame = pd.read_parquet(file)
    else:
        frame = pd.read_csv(file, dtype={"user_id": str, "item_id": str})
        if not _NEEDED & set(frame.columns):
            frame = _read_without_header(file)
    missing = _NEEDED - set(frame.columns)
    if missing:
        raise ValueError(f"column {', '.join(sorted(missing))} is missing")
    return frame


def _read_without_header(file: Path) -> pd.DataFrame:
    """The official ratings: user and item by their ids, else in this order; rating, time."""
    frame = pd.read_csv(file, header=None, dtype={0: str, 1: str})
    if frame.shape[1] != 4:
        raise ValueError(f"{frame.shape[1]} columns without names, expected 4")
    first = frame.iloc[:_SAMPLED, :2].dropna().to_numpy(str).tolist()
    user, item = user_and_item(first) or (0, 1)
    return frame.rename(columns={user: "user_id", item: "item_id", 2: "rating", 3: "timestamp"})


def _stars(frame: pd.DataFrame) -> NDArray[np.int8]:
    """(n,) as `signals.stars_of`; where only `liked` is known, 4 or 2; else 0."""
    rating, liked = _numbers(frame, "rating", 5), _numbers(frame, "liked", 1)
    stars = np.clip(np.floor(rating + 0.5), 1, 5)
    by_liked = np.where(liked > 0, _LIKED_STARS, _NOT_LIKED_STARS)
    stars = np.where(np.isnan(rating), np.where(np.isnan(liked), 0, by_liked), stars)
    return stars.astype(np.int8)


def _numbers(frame: pd.DataFrame, name: str, highest: float) -> Float64Array:
    """(n,) a column of numbers from 0; NaN where unknown. Raises BadDataset for others."""
    if name not in frame:
        return np.full(len(frame), np.nan)
    values = pd.to_numeric(frame[name]).to_numpy(np.float64)
    if not np.all(np.isnan(values) | ((values >= 0) & (values <= highest))):
        raise BadDataset(f"{name}: a value is outside 0 to {highest:g}")
    return values


def _interactions(frame: pd.DataFrame, weight: FloatArray) -> Interactions:
    user, user_ids = pd.factorize(frame["user_id"], sort=True)
    item, item_ids = pd.factorize(frame["item_id"], sort=True)
    return Interactions(
        user_ids=np.asarray(user_ids, np.str_),
        item_ids=np.asarray(item_ids, np.str_),
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        time_ms=(frame["timestamp"].to_numpy(np.float64) * 1000).astype(np.int64),
        weight=weight,
    )


def _texts(file: Path) -> ItemTexts:
    if not file.is_file():
        return {}
    frame = pd.read_csv(file, dtype=str).fillna("")
    return {
        item: (title or None, tuple(filter(None, categories.split(","))))
        for item, title, categories in zip(
            frame["item_id"], frame["title"], frame["categories"], strict=True
        )
    }

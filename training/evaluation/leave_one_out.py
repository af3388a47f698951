"""Make a leave-one-out split by time of a dataset, in the form that `published_split` reads.

reads   a dataset (training/evaluation/reviews.py)
writes  csv  <folder>/train.csv.gz, valid.csv.gz, test.csv.gz: user_id,item_id,timestamp (s)

Of every user with enough items the newest is the test row and the one before it the validation row;
the others are training rows. Items of equal times are in random order. Users with fewer items are
left out. A user whose two newest rows do not have exact times has training rows only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from afterclick.arrays import BoolArray
from afterclick.errors import BadDataset, BadInput
from training.evaluation import reviews
from training.event_log import EventLog
from training.interactions import Interactions, by_user_and_time, runs

PARTS = ("train", "valid", "test")


def write(dataset: Path, folder: Path, min_interactions: int = 5) -> dict[str, int]:
    """Write the split, and return its rows, users and items. Raises BadDataset without users that
    have `min_interactions`, BadInput for a folder that holds files."""
    if folder.exists() and any(folder.iterdir()):
        raise BadInput(f"--to {folder}: the folder is not empty")
    parts = leave_one_out(reviews.load(dataset).log, min_interactions)
    if not len(parts["test"]):
        raise BadDataset(
            f"{dataset}: no user has {min_interactions} items with exact times; "
            "give a lower --min-interactions"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        _frame(rows).to_csv(folder / f"{name}.csv.gz", index=False)
    train = parts["train"]
    users, items = (len(np.unique(column)) for column in (train.user, train.item))
    return {name: len(rows) for name, rows in parts.items()} | {"users": users, "items": items}


def leave_one_out(log: EventLog, min_interactions: int) -> dict[str, Interactions]:
    """The rows of train, valid and test."""
    rows, trusted = log.pairs(), log.trusted[log.contacts().row]
    order = by_user_and_time(rows)[::-1]  # of each user the newest first
    start, end = runs(rows.user[order])
    rank, count = np.arange(len(order)) - start, end - start
    both = np.minimum(start + 1, len(order) - 1)
    held_out = trusted[order][start] & trusted[order][both]
    part = np.where(held_out & (count > 2), np.minimum(rank, 2), 2)  # 0: test, 1: valid, 2: train
    number = np.full(len(rows), -1)
    number[order] = np.where(count >= min_interactions, part, -1)

    def of(part: int) -> BoolArray:
        return np.asarray(number == part)

    return {name: rows.where(of(2 - index)) for index, name in enumerate(PARTS)}


def _frame(rows: Interactions) -> pd.DataFrame:
    columns = {
        "user_id": rows.user_ids[rows.user],
        "item_id": rows.item_ids[rows.item],
        "timestamp": rows.time_ms // 1000,
    }
    return pd.DataFrame(columns)

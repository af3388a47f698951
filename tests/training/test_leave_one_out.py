"""A leave-one-out split holds out the newest items of each user."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterclick.errors import BadDataset, BadInput
from training.evaluation import leave_one_out, published_split

DAY_S = 86_400


def dataset(folder: Path) -> Path:
    """u0: five days; u1: five days, the newest two estimated; u2: two items."""
    rows = [("u0", day, "exact") for day in range(5)]
    rows += [("u1", day, "exact" if day < 3 else "estimated") for day in range(5)]
    rows += [("u2", day, "exact") for day in range(2)]
    lines = [f"{user},i{day},{day * DAY_S},{quality}" for user, day, quality in rows]
    path = folder / "reviews.csv"
    path.write_text("\n".join(["user_id,item_id,timestamp,time_quality", *lines]))
    return path


def test_the_newest_items_of_each_user_are_held_out(tmp_path: Path) -> None:
    to = tmp_path / "split"
    counts = leave_one_out.write(dataset(tmp_path), to, 5)
    assert counts == {"train": 8, "valid": 1, "test": 1, "users": 2, "items": 5}
    split = published_split.load(to)
    assert split.timed
    first = split.train.user_ids.tolist().index("u0")
    ids = split.train.item_ids
    assert ids[split.train.item[split.train.user == first]].tolist() == ["i0", "i1", "i2"]
    assert ids[split.valid.item].tolist() == ["i3"]
    assert ids[split.test[first].indices].tolist() == ["i4"]


def test_files_in_the_folder_are_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not empty"):
        leave_one_out.write(dataset(tmp_path), tmp_path, 5)


def test_a_dataset_without_enough_items_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="min-interactions"):
        leave_one_out.write(dataset(tmp_path), tmp_path / "split", 50)

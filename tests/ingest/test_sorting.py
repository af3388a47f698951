"""Rows are sorted by event time, each once, in any order of the file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ingest.sorting
from afterclick.errors import BadDataset
from ingest.datasets import open_dataset
from ingest.rows import SCHEMA, Row, to_batch
from ingest.sorting import _merge, _Run, _sorted, sort_by_time, write_run
from tests.ingest.conftest import ratings_csv, read


def test_a_file_sorted_by_item_is_read_in_time_order(tmp_path: Path) -> None:
    path = ratings_csv(tmp_path, 5000)
    data = sort_by_time(open_dataset(path), tmp_path / "home")
    rows = [row for batch in data.batches() for row in batch.to_pylist()]
    expected, _ = read(path)
    assert rows == sorted(expected, key=lambda row: row["time_ms"])
    assert rows != expected
    assert (data.manifest.first_ms, data.manifest.last_ms) == (
        rows[0]["time_ms"],
        rows[-1]["time_ms"],
    )


def test_a_prepared_dataset_is_not_read_again(tmp_path: Path) -> None:
    dataset = open_dataset(ratings_csv(tmp_path))
    first = sort_by_time(dataset, tmp_path / "home")
    stamp = (first.folder / "prepared.json").stat().st_mtime_ns
    again = sort_by_time(dataset, tmp_path / "home")
    assert again.manifest == first.manifest
    assert (again.folder / "prepared.json").stat().st_mtime_ns == stamp


def test_an_incomplete_preparation_is_repeated(tmp_path: Path) -> None:
    dataset = open_dataset(ratings_csv(tmp_path))
    first = sort_by_time(dataset, tmp_path / "home")
    (first.folder / "prepared.json").write_text("{")
    assert sort_by_time(dataset, tmp_path / "home").manifest == first.manifest
    assert [p.name for p in (tmp_path / "home" / "prepared").iterdir()] == [first.folder.name]


def test_a_file_with_only_bad_lines_is_rejected_with_the_first(tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text("user_id,item_id,timestamp\nu,i,never\n")
    with pytest.raises(BadDataset, match="no good line among 1; line 2: timestamp"):
        sort_by_time(open_dataset(path), tmp_path / "home")


RUNS = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=12), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(RUNS)
def test_runs_merge_into_one_stable_order(runs: list[list[int]]) -> None:
    numbered = [
        (t, f"{run}.{place}") for run, times in enumerate(runs) for place, t in enumerate(times)
    ]
    before, ingest.sorting.BATCH_ROWS = ingest.sorting.BATCH_ROWS, 2
    try:
        with TemporaryDirectory() as name:
            rest = iter(numbered)
            for number, times in enumerate(runs):
                rows = [
                    Row(item, "i", t, None, None, None) for t, item in (next(rest) for _ in times)
                ]
                table = _sorted(pa.Table.from_batches([to_batch(rows)], SCHEMA))
                write_run(table, Path(name) / f"{number}")
            opened = [_Run(Path(name) / f"{number}") for number in range(len(runs))]
            merged = [
                row for part in _merge([r for r in opened if r.load()]) for row in part.to_pylist()
            ]
    finally:
        ingest.sorting.BATCH_ROWS = before
    assert [(row["time_ms"], row["user_id"]) for row in merged] == sorted(
        numbered, key=lambda pair: pair[0]
    )


def test_the_run_size_does_not_change_the_order(tmp_path: Path) -> None:
    dataset = open_dataset(ratings_csv(tmp_path, 2000))
    small = sort_by_time(dataset, tmp_path / "small", run_rows=1)
    large = sort_by_time(dataset, tmp_path / "large")
    assert [b.to_pylist() for b in small.batches()] == [b.to_pylist() for b in large.batches()]
    assert Counter(r["user_id"] for b in small.batches() for r in b.to_pylist()).total() == 2000

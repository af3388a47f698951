"""Formats are detected by name and first lines, also in a folder of several files."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterclick.errors import BadDataset
from ingest.datasets import open_dataset
from ingest.formats import Format, ReadOptions, detect
from tests.ingest.conftest import json_lines, ratings_csv


def test_a_folder_has_reviews_and_items(shop: Path) -> None:
    dataset = open_dataset(shop)
    assert dataset.name == "shop"
    assert dataset.reviews.name == "reviews.csv"
    assert dataset.items is not None
    assert dataset.items.name == "items.csv"


def test_the_official_files_are_detected(tmp_path: Path) -> None:
    ratings_csv(tmp_path)
    (tmp_path / "meta_Toys.json").write_text(
        "{'asin': 'B000', 'title': 'Bear', 'categories': [['Toys']]}\n"
    )
    dataset = open_dataset(tmp_path)
    assert dataset.reviews_format.format is Format.RATINGS_CSV
    assert dataset.items_format is not None
    assert dataset.items_format.format is Format.ITEMS_2014


def test_of_two_reviews_files_the_one_named_reviews_is_used(
    tmp_path: Path,
) -> None:
    ratings_csv(tmp_path, 500)
    (tmp_path / "reviews.csv").write_text("user_id,item_id,timestamp\nu,i,1\n")
    (tmp_path / "notes.txt").write_text("not data")
    dataset = open_dataset(tmp_path)
    assert dataset.reviews.name == "reviews.csv"
    assert dataset.ignored == ("ratings_Toys.csv",)


@pytest.mark.parametrize("content", [None, "hello\n"])
def test_a_folder_without_reviews_is_an_error(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "x.csv").write_text(content)
    with pytest.raises(BadDataset, match="no reviews file"):
        open_dataset(tmp_path)


def test_an_items_file_without_reviews_is_an_error(shop: Path) -> None:
    with pytest.raises(BadDataset, match="contains items"):
        open_dataset(shop / "items.csv")


def test_a_folder_with_metadata_only_says_what_is_missing(tmp_path: Path) -> None:
    json_lines(tmp_path / "meta_Toys.jsonl", [{"parent_asin": "B1", "title": "t"}])
    with pytest.raises(BadDataset, match=r"meta_Toys\.jsonl contains items only; put the reviews"):
        open_dataset(tmp_path)


def test_stated_columns_leave_other_files_of_a_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("when,who,what\n1,u,i\n")
    (tmp_path / "items.csv").write_text("item_id,title\ni,t\n")
    found = open_dataset(tmp_path, ReadOptions.parse("user=who,item=what,time=when", None))
    assert found.reviews.name == "log.csv"
    assert found.items is not None


def test_the_format_is_detected_after_bad_first_lines(tmp_path: Path) -> None:
    path = tmp_path / "reviews.json"
    path.write_bytes(b'garbage\n{"broken\n{"reviewerID": "a", "asin": "b", "unixReviewTime": 1}\n')
    assert detect(path).format is Format.REVIEWS_2014


def test_2023_metadata_and_reviews_are_distinguished(tmp_path: Path) -> None:
    path = json_lines(
        tmp_path / "meta.jsonl", [{"parent_asin": "B1", "title": "t", "categories": ["a"]}]
    )
    assert detect(path).format is Format.ITEMS_2023


def test_the_fingerprint_depends_on_the_content_not_on_the_path(tmp_path: Path) -> None:
    one, two = tmp_path / "a", tmp_path / "b"
    one.mkdir()
    two.mkdir()
    first = open_dataset(ratings_csv(one, 50, "x.csv")).fingerprint()
    assert open_dataset(ratings_csv(two, 50, "y.csv")).fingerprint() == first
    assert open_dataset(ratings_csv(two, 51, "y.csv")).fingerprint() != first
    swapped = ReadOptions.parse("user=2,item=1,time=4", None)
    assert open_dataset(one / "x.csv", swapped).fingerprint() != first

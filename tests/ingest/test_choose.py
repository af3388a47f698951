"""Without DATASET the best available dataset is used, with a printed reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterclick.errors import BadDataset, Unavailable
from ingest.datasets import resolve_dataset
from ingest.download import Progress
from tests.ingest.conftest import ratings_csv


def offline(folder: Path, on_progress: Progress) -> None:
    raise Unavailable("https://example.org: cannot be reached")


def unwanted(folder: Path, on_progress: Progress) -> None:
    raise AssertionError("no download was needed")


def test_a_named_dataset_comes_first(shop: Path, tmp_path: Path) -> None:
    ratings_csv(tmp_path)
    choice = resolve_dataset(shop, tmp_path / "home", raw=tmp_path, fetch=unwanted)
    assert choice.dataset.path == shop
    assert "DATASET" in choice.why


def test_a_named_path_without_a_dataset_is_an_error(tmp_path: Path) -> None:
    ratings_csv(tmp_path)
    with pytest.raises(BadDataset, match="no such file"):
        resolve_dataset(tmp_path / "typo", tmp_path / "home", raw=tmp_path, fetch=unwanted)


@pytest.mark.parametrize("inside", [".", "toys"])
def test_a_dataset_in_raw_comes_second(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / "raw" / inside
    folder.mkdir(parents=True)
    ratings_csv(folder)
    choice = resolve_dataset(None, tmp_path / "home", raw=tmp_path / "raw", fetch=unwanted)
    assert choice.dataset.path == folder
    assert "found in" in choice.why


def test_a_download_is_selected_third(tmp_path: Path) -> None:
    def online(folder: Path, on_progress: Progress) -> None:
        folder.mkdir(parents=True)
        ratings_csv(folder)

    choice = resolve_dataset(None, tmp_path / "home", raw=tmp_path / "raw", fetch=online)
    assert choice.dataset.reviews.parent == tmp_path / "raw" / "electronics"
    assert "downloaded" in choice.why


def test_without_internet_a_shop_is_generated_once(tmp_path: Path) -> None:
    raw, home = tmp_path / "raw", tmp_path / "home"
    first = resolve_dataset(None, home, raw=raw, fetch=offline)
    assert first.dataset.path == home / "shop"
    assert "cannot be reached" in first.why
    second = resolve_dataset(None, home, raw=raw, fetch=unwanted)
    assert second.dataset.fingerprint() == first.dataset.fingerprint()
    assert "generated earlier" in second.why


def test_an_unfinished_download_is_not_a_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "electronics"
    folder.mkdir(parents=True)
    ratings_csv(folder).rename(folder / "ratings_Electronics.csv.part")
    choice = resolve_dataset(None, tmp_path / "home", raw=tmp_path / "raw", fetch=offline)
    assert choice.dataset.name == "shop"

"""Which dataset to use where none was named, and why.

reads   env     DATASET (handed in by the entry point)
        folder  data/raw/
writes  folder  data/raw/<name>/ (download), <home>/shop/ (generated)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from afterclick.errors import BadDataset, Unavailable
from ingest.datasets import Dataset, open_dataset
from ingest.download import Patience, Progress, download, official_urls
from ingest.shop import make_shop

RAW = Path("data/raw")
OFFICIAL_NAME = "electronics"

Fetch = Callable[[Path, Progress], None]


@dataclass(frozen=True)
class Choice:
    """A dataset and, for people, why this one."""

    dataset: Dataset
    why: str


def fetch_ratings(folder: Path, on_progress: Progress) -> None:
    """Download the official ratings file into a folder. Raises Unavailable where there is no internet."""
    ratings, _ = official_urls(OFFICIAL_NAME)
    download(ratings, folder, Patience(attempts=4), on_progress)


def choose_dataset(
    named: Path | None,
    home: Path,
    *,
    raw: Path = RAW,
    fetch: Fetch | None = fetch_ratings,
    on_progress: Progress = lambda name, done, total: None,
) -> Choice:
    """The dataset to use: the named one, what lies in `raw`, a download, or a generated shop, in this order.

    A shop generated earlier is used again without trying the download. `fetch` None leaves the download out.
    Raises BadDataset if the named one is none: then nothing else is tried.
    """
    if named is not None:
        return Choice(open_dataset(named), f"DATASET names {named}")
    lying = _lying(raw)
    if lying is not None:
        return Choice(lying, f"it lies in {raw} (set DATASET to use another)")
    shop = home / "shop"
    if (shop / "items.csv").exists() and (shop / "reviews.csv").exists():
        why = f"generated earlier in {shop} (`afterclick data get {OFFICIAL_NAME}` fetches the real one)"
        return Choice(open_dataset(shop), why)
    problem = "the download is switched off"
    if fetch is not None:
        try:
            fetch(raw / OFFICIAL_NAME, on_progress)
            return Choice(
                open_dataset(raw / OFFICIAL_NAME),
                "downloaded: DATASET is not set, data/raw is empty",
            )
        except (Unavailable, BadDataset) as error:
            problem = str(error)
    make_shop(shop)
    return Choice(
        open_dataset(shop), f"generated, because the official data could not be had: {problem}"
    )


def _lying(raw: Path) -> Dataset | None:
    """The dataset in a folder or in the first of its folders that holds one."""
    if not raw.is_dir():
        return None
    for folder in (raw, *sorted(path for path in raw.iterdir() if path.is_dir())):
        try:
            return open_dataset(folder)
        except BadDataset:
            continue
    return None

"""Find and open a dataset: a reviews file and an optional items file.

reads   env     DATASET (passed in by the entry point)
        folder  data/raw/, a dataset folder or file
writes  folder  data/raw/<name>/ (download), <home>/shop/ (generated)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from afterclick.errors import BadDataset, Unavailable
from ingest.download import Progress, RetryPolicy, download, official_urls
from ingest.files import SUFFIXES, stem
from ingest.formats import DETECTED, Detected, ReadOptions, detect
from ingest.generate import generate_shop

_EDGE_BYTES = 1 << 20


@dataclass(frozen=True)
class Dataset:
    """Files of a dataset and their formats. `ignored` lists files that are present but unused."""

    path: Path
    reviews: Path
    reviews_format: Detected
    items: Path | None
    items_format: Detected | None
    ignored: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Short name for event sources and headings."""
        return stem(self.path)

    def fingerprint(self) -> str:
        """Hash of how the reviews file is read, its size, first and last MiB."""
        size, form = self.reviews.stat().st_size, self.reviews_format
        read_as = f"{form.format.name}:{form.columns}:{form.separator}:{form.encoding}:{size}"
        digest = hashlib.blake2b(read_as.encode(), digest_size=8)
        with self.reviews.open("rb") as file:
            digest.update(file.read(_EDGE_BYTES))
            file.seek(max(0, size - _EDGE_BYTES))
            digest.update(file.read(_EDGE_BYTES))
        return digest.hexdigest()


def open_dataset(path: Path, options: ReadOptions = DETECTED) -> Dataset:
    """Open the dataset at a folder or file. Raises BadDataset if a part is missing.

    If a folder has several reviews files, one named `reviews*` wins, otherwise the largest.
    """
    if path.is_file():
        detected = detect(path, options)
        if detected.format.is_items:
            raise BadDataset(
                f"{path}: contains items only; pass the reviews file or a folder with both"
            )
        return Dataset(path, path, detected, None, None)
    if not path.is_dir():
        raise BadDataset(f"{path}: no such file or folder")
    reviews, items, ignored = _sort_out(path, options)
    if not reviews:
        only = [f"{p.name} contains items only; put the reviews file beside it" for p in items]
        why = "; ".join([*only, *ignored])
        raise BadDataset(f"{path}: no reviews file in this folder" + (f" ({why})" if why else ""))
    chosen = _best(reviews, "reviews")
    catalogue = _best(items, "items") if items else None
    spare = [p.name for p in (*reviews, *items) if p not in (chosen, catalogue)]
    return Dataset(
        path,
        chosen,
        reviews[chosen],
        catalogue,
        items[catalogue] if catalogue else None,
        (*spare, *ignored),
    )


def _sort_out(
    folder: Path, options: ReadOptions
) -> tuple[dict[Path, Detected], dict[Path, Detected], list[str]]:
    reviews: dict[Path, Detected] = {}
    items: dict[Path, Detected] = {}
    ignored: list[str] = []
    for path in sorted(folder.iterdir()):
        if not path.name.endswith(SUFFIXES) or path.name.startswith(".") or not path.is_file():
            continue
        try:
            detected = _detect_in_folder(path, options)
        except BadDataset as error:
            ignored.append(str(error))
            continue
        (items if detected.format.is_items else reviews)[path] = detected
    return reviews, items, ignored


def _detect_in_folder(path: Path, options: ReadOptions) -> Detected:
    """By the stated columns, or for a file that lacks them by its own."""
    if options.columns:
        with suppress(BadDataset):
            return detect(path, options)
    return detect(path, replace(options, columns={}))


def _best(files: dict[Path, Detected], name: str) -> Path:
    return max(files, key=lambda p: (p.name.startswith(name), p.stat().st_size))


RAW = Path("data/raw")
OFFICIAL_NAME = "electronics"

Fetch = Callable[[Path, Progress], None]


@dataclass(frozen=True)
class ResolvedDataset:
    """A dataset and the reason why it was selected."""

    dataset: Dataset
    why: str


def fetch_ratings(folder: Path, on_progress: Progress) -> None:
    """Download the official ratings file into a folder. Raises Unavailable without internet."""
    ratings, _ = official_urls(OFFICIAL_NAME)
    download(ratings, folder, RetryPolicy(attempts=4), on_progress)


def named_dataset(path: Path, options: ReadOptions = DETECTED) -> ResolvedDataset:
    """The dataset that a user names. Raises BadDataset if it is none."""
    return ResolvedDataset(open_dataset(path, options), f"DATASET names {path}")


def resolve_dataset(
    named: Path | None,
    home: Path,
    *,
    raw: Path = RAW,
    fetch: Fetch | None = fetch_ratings,
    on_progress: Progress = lambda name, done, total: None,
) -> ResolvedDataset:
    """Select a dataset: the named one, a local one in `raw`, a download, or a generated shop.

    A previously generated shop is reused without trying the download. `fetch=None` disables the
    download. Raises BadDataset if `named` is not a dataset; no other source is tried then.
    """
    if named is not None:
        return named_dataset(named)
    local = _local_dataset(raw)
    if local is not None:
        return ResolvedDataset(local, f"found in {raw} (set DATASET to use another)")
    shop = home / "shop"
    if (shop / "items.csv").exists() and (shop / "reviews.csv").exists():
        why = f"generated earlier in {shop} (download: `afterclick data get {OFFICIAL_NAME}`)"
        return ResolvedDataset(open_dataset(shop), why)
    problem = "the download is disabled"
    if fetch is not None:
        try:
            fetch(raw / OFFICIAL_NAME, on_progress)
            return ResolvedDataset(
                open_dataset(raw / OFFICIAL_NAME),
                "downloaded: DATASET is not set, data/raw is empty",
            )
        except (Unavailable, BadDataset) as error:
            problem = str(error)
    generate_shop(shop)
    return ResolvedDataset(
        open_dataset(shop), f"generated, because the official data is unavailable: {problem}"
    )


def _local_dataset(raw: Path) -> Dataset | None:
    """Open the dataset in a folder, or in the first subfolder that contains one."""
    if not raw.is_dir():
        return None
    for folder in (raw, *sorted(path for path in raw.iterdir() if path.is_dir())):
        try:
            return open_dataset(folder)
        except BadDataset:
            continue
    return None

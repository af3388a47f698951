"""A dataset: a reviews file and, where there is one, an items file.

reads   folder or file  the names, and the first lines of each
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from afterclick.errors import BadDataset
from ingest.formats import Detected, detect

_SUFFIXES = (".csv", ".csv.gz", ".json", ".json.gz", ".jsonl", ".jsonl.gz", ".parquet")
_EDGE_BYTES = 1 << 20


@dataclass(frozen=True)
class Dataset:
    """The files of a dataset and what they are. `ignored` names what was found but is not used."""

    path: Path
    reviews: Path
    reviews_format: Detected
    items: Path | None
    items_format: Detected | None
    ignored: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A short name, for event sources and headings."""
        name = self.path.name
        for suffix in sorted(_SUFFIXES, key=len, reverse=True):
            name = name.removesuffix(suffix)
        return name

    def fingerprint(self) -> str:
        """An id of the reviews file's content, as far as its size, first and last MiB tell."""
        size = self.reviews.stat().st_size
        digest = hashlib.blake2b(f"{self.reviews_format.format}:{size}".encode(), digest_size=8)
        with self.reviews.open("rb") as file:
            digest.update(file.read(_EDGE_BYTES))
            file.seek(max(0, size - _EDGE_BYTES))
            digest.update(file.read(_EDGE_BYTES))
        return digest.hexdigest()


def open_dataset(path: Path) -> Dataset:
    """The dataset at a folder or file. Raises BadDataset, saying what is missing.

    In a folder with several reviews files one named `reviews*` wins, else the largest.
    """
    if path.is_file():
        detected = detect(path)
        if detected.format.is_items:
            raise BadDataset(
                f"{path}: holds items, no reviews; give the reviews file or the folder of both"
            )
        return Dataset(path, path, detected, None, None)
    if not path.is_dir():
        raise BadDataset(f"{path}: no such file or folder")
    reviews, items, ignored = _sort_out(path)
    if not reviews:
        why = f" ({'; '.join(ignored)})" if ignored else ""
        raise BadDataset(f"{path}: no reviews file in this folder{why}")
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


def _sort_out(folder: Path) -> tuple[dict[Path, Detected], dict[Path, Detected], list[str]]:
    reviews: dict[Path, Detected] = {}
    items: dict[Path, Detected] = {}
    ignored: list[str] = []
    for path in sorted(folder.iterdir()):
        if not path.name.endswith(_SUFFIXES) or path.name.startswith(".") or not path.is_file():
            continue
        try:
            detected = detect(path)
        except BadDataset as error:
            ignored.append(str(error))
            continue
        (items if detected.format.is_items else reviews)[path] = detected
    return reviews, items, ignored


def _best(found: dict[Path, Detected], name: str) -> Path:
    return max(found, key=lambda p: (p.name.startswith(name), p.stat().st_size))

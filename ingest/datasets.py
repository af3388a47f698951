"""Find, detect and open a dataset: a reviews file and an optional items file.

reads   env     DATASET (passed in by the entry point)
        folder  data/raw/, a dataset folder or file: names and the first MiB of each file
writes  folder  data/raw/<name>/ (download), <home>/shop/ (generated)
"""

from __future__ import annotations

import ast
import csv
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from afterclick.errors import BadDataset, Unavailable
from ingest.download import Progress, RetryPolicy, download, official_urls
from ingest.generate import generate_shop
from ingest.rows import BOM, open_bytes

HEAD_BYTES = 1 << 20


class Format(StrEnum):
    """Supported file formats."""

    RATINGS_CSV = "official ratings CSV (user,item,rating,timestamp; no header)"
    NAMED_CSV = "CSV with named columns"
    PARQUET = "Parquet with named columns"
    REVIEWS_2014 = "2014 reviews, JSON lines"
    REVIEWS_2023 = "2023 reviews, JSON lines"
    ITEMS_2014 = "2014 metadata, JSON lines"
    ITEMS_2023 = "2023 metadata, JSON lines"
    ITEMS_CSV = "items CSV with named columns"
    ITEMS_PARQUET = "items Parquet with named columns"

    @property
    def is_items(self) -> bool:
        """True for catalogue files, False for interactions."""
        return self.name.startswith("ITEMS")


# column names of known datasets, per field
NAMES: dict[str, tuple[str, ...]] = {
    "user_id": ("user_id", "user", "userid", "reviewerid", "customer_id", "visitorid"),
    "item_id": (
        "item_id",
        "item",
        "itemid",
        "asin",
        "parent_asin",
        "product_id",
        "productid",
        "movieid",
    ),
    "time": ("timestamp", "time", "unixreviewtime", "event_time", "ts", "date"),
    "rating": ("rating", "overall", "stars", "score"),
    "text": ("text", "reviewtext", "review_text", "review_body"),
    "action": ("action", "event"),
    "title": ("title", "name", "item_name"),
    "categories": ("categories", "category", "genres"),
    "brand": ("brand", "store"),
    "price": ("price",),
}


@dataclass(frozen=True)
class Detected:
    """Format of a file and, for named columns, the position of each field."""

    format: Format
    columns: dict[str, int]
    header: tuple[str, ...] = ()


def detect(path: Path) -> Detected:
    """Detect the format of a file. Raises BadDataset for an unsupported one."""
    if path.suffix == ".parquet":
        return _parquet(path)
    head = _head(path)
    if not head:
        raise BadDataset(f"{path}: is empty")
    if head[:1] == b"{" or ".json" in path.name:
        return Detected(_json(head, path), {})
    return _csv(head, path)


def find_columns(header: list[str]) -> dict[str, int]:
    """Map field to column position; the first matching name in NAMES wins."""
    positions = {
        name.strip().lower(): position for position, name in reversed(list(enumerate(header)))
    }
    columns = {
        f: next((positions[n] for n in names if n in positions), None) for f, names in NAMES.items()
    }
    return {f: position for f, position in columns.items() if position is not None}


def parse_object(line: bytes) -> Any:
    """Parse a line as JSON, or as the Python literal used by 2014 metadata.

    Literals only, nothing is evaluated. Raises ValueError for anything else.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if line[:2] not in (b"{'", b'{"', b"{u"):
            raise ValueError(f"not JSON: {error.msg}") from None
    try:
        return ast.literal_eval(line.decode("utf-8"))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise ValueError("neither JSON nor a Python literal") from None


def _head(path: Path) -> bytes:
    with open_bytes(path) as file:
        try:
            return file.read(HEAD_BYTES).removeprefix(BOM).lstrip()
        except (OSError, EOFError) as error:
            raise BadDataset(f"{path}: damaged or truncated ({error}); download it again") from None


def _json(head: bytes, path: Path) -> Format:
    for line in head.split(b"\n")[:20]:
        try:
            keys = parse_object(line.strip()).keys()
        except (ValueError, AttributeError):
            continue
        if {"reviewerID", "asin"} <= keys:
            return Format.REVIEWS_2014
        if {"user_id", "rating"} <= keys:
            return Format.REVIEWS_2023
        if "parent_asin" in keys:
            return Format.ITEMS_2023
        if "asin" in keys:
            return Format.ITEMS_2014
    if path.name.startswith("meta"):  # the first line may exceed HEAD_BYTES
        return Format.ITEMS_2023 if b"parent_asin" in head else Format.ITEMS_2014
    raise BadDataset(
        f"{path}: unknown JSON lines; expected reviewerID and asin (2014), "
        "user_id, parent_asin and rating (2023), or the metadata of either"
    )


def _csv(head: bytes, path: Path) -> Detected:
    first = head.split(b"\n", 1)[0].decode("utf-8", "replace").rstrip("\r")
    header = next(csv.reader([first]), [])
    detected = _named(header, Format.NAMED_CSV, Format.ITEMS_CSV)
    if detected:
        return detected
    for line in head.split(b"\n")[:20]:
        fields = line.decode("utf-8", "replace").strip().split(",")
        if len(fields) == 4 and _is_number(fields[2]) and _is_number(fields[3]):
            columns = {"user_id": 0, "item_id": 1, "rating": 2, "time": 3}
            return Detected(
                Format.RATINGS_CSV, columns, ("user_id", "item_id", "rating", "timestamp")
            )
    raise BadDataset(
        f"{path}: unknown CSV; expected a header with user_id, item_id and timestamp (reviews) "
        "or item_id and title (items), or lines of user,item,rating,timestamp"
    )


def _parquet(path: Path) -> Detected:
    try:
        header = list(pq.read_schema(path).names)
    except (OSError, ValueError) as error:
        raise BadDataset(f"{path}: not a readable Parquet file ({error})") from None
    detected = _named(header, Format.PARQUET, Format.ITEMS_PARQUET)
    if not detected:
        raise BadDataset(
            f"{path}: has no columns user_id, item_id, timestamp, nor item_id and title"
        )
    return detected


def _named(header: list[str], reviews: Format, items: Format) -> Detected | None:
    columns = find_columns(header)
    if {"user_id", "item_id", "time"} <= columns.keys():
        return Detected(reviews, columns, tuple(header))
    if "item_id" in columns and columns.keys() & {"title", "categories"}:
        return Detected(items, columns, tuple(header))
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_SUFFIXES = (".csv", ".csv.gz", ".json", ".json.gz", ".jsonl", ".jsonl.gz", ".parquet")
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
        name = self.path.name
        for suffix in sorted(_SUFFIXES, key=len, reverse=True):
            name = name.removesuffix(suffix)
        return name

    def fingerprint(self) -> str:
        """Hash of the reviews file's format, size, first and last MiB."""
        size = self.reviews.stat().st_size
        digest = hashlib.blake2b(f"{self.reviews_format.format}:{size}".encode(), digest_size=8)
        with self.reviews.open("rb") as file:
            digest.update(file.read(_EDGE_BYTES))
            file.seek(max(0, size - _EDGE_BYTES))
            digest.update(file.read(_EDGE_BYTES))
        return digest.hexdigest()


def open_dataset(path: Path) -> Dataset:
    """Open the dataset at a folder or file. Raises BadDataset if a part is missing.

    If a folder has several reviews files, one named `reviews*` wins, otherwise the largest.
    """
    if path.is_file():
        detected = detect(path)
        if detected.format.is_items:
            raise BadDataset(
                f"{path}: contains items only; pass the reviews file or a folder with both"
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
        return ResolvedDataset(open_dataset(named), f"DATASET names {named}")
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

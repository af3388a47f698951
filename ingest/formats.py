"""Which format a dataset file has, told by its name and its first lines.

reads   file  the first MiB
"""

from __future__ import annotations

import ast
import csv
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from afterclick.errors import BadDataset
from ingest.lines import BOM, open_bytes

HEAD_BYTES = 1 << 20


class Format(StrEnum):
    """The formats that are read."""

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
        """Whether a file of this format is a catalogue rather than interactions."""
        return self.name.startswith("ITEMS")


# what columns are called elsewhere
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
    """A file's format and, where columns have names, which position holds which field."""

    format: Format
    columns: dict[str, int]
    header: tuple[str, ...] = ()


def detect(path: Path) -> Detected:
    """The format of a file. Raises BadDataset if it is none of those that are read."""
    if path.suffix == ".parquet":
        return _parquet(path)
    head = _head(path)
    if not head:
        raise BadDataset(f"{path}: is empty")
    if head[:1] == b"{" or ".json" in path.name:
        return Detected(_json(head, path), {})
    return _csv(head, path)


def find_columns(header: list[str]) -> dict[str, int]:
    """Field → position, for the names in NAMES; the first name in the list wins."""
    places = {name.strip().lower(): place for place, name in reversed(list(enumerate(header)))}
    found = {f: next((places[n] for n in names if n in places), None) for f, names in NAMES.items()}
    return {f: place for f, place in found.items() if place is not None}


def parse_object(line: bytes) -> Any:
    """The object on a line: JSON, or the Python literal that 2014 metadata is often written in.

    Raises ValueError for anything else. Nothing is evaluated: literals only.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if line[:2] not in (b"{'", b'{"', b"{u"):
            raise ValueError(f"no JSON: {error.msg}") from None
    try:
        return ast.literal_eval(line.decode("utf-8"))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise ValueError("neither JSON nor a Python literal") from None


def _head(path: Path) -> bytes:
    with open_bytes(path) as file:
        try:
            return file.read(HEAD_BYTES).removeprefix(BOM).lstrip()
        except (OSError, EOFError) as error:
            raise BadDataset(f"{path}: damaged or cut short ({error}); download it again") from None


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
    if path.name.startswith("meta"):  # a first line longer than what was looked at
        return Format.ITEMS_2023 if b"parent_asin" in head else Format.ITEMS_2014
    raise BadDataset(
        f"{path}: JSON lines with neither reviewerID and asin, nor user_id, parent_asin and rating, "
        "nor the metadata of either"
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
        f"{path}: neither a header with user_id, item_id and timestamp (reviews) "
        "or item_id and title (items), nor lines of user,item,rating,timestamp"
    )


def _parquet(path: Path) -> Detected:
    try:
        header = list(pq.read_schema(path).names)
    except (OSError, ValueError) as error:
        raise BadDataset(f"{path}: no readable Parquet file ({error})") from None
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

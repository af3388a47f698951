"""Detect the format of a dataset file, and how its columns are interpreted.

reads   file  the name and the first MiB
"""

from __future__ import annotations

import ast
import codecs
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from afterclick.amazon_ids import user_and_item
from afterclick.errors import BadDataset, BadInput
from ingest.files import BOM, open_bytes, read
from ingest.rows import time_unit

HEAD_BYTES = 1 << 20
_SAMPLED = 20
"""First lines that are looked at."""
_SEPARATORS = (",", ";", "\t", "|", "::")


class Format(StrEnum):
    """Supported file formats."""

    RATINGS_CSV = "ratings without a header (user, item, rating, timestamp)"
    NAMED_CSV = "CSV with named columns"
    PARQUET = "Parquet with named columns"
    REVIEWS_2014 = "2014 and 2018 reviews, JSON lines"
    REVIEWS_2023 = "2023 reviews, JSON lines"
    ITEMS_2014 = "2014 and 2018 metadata, JSON lines"
    ITEMS_2023 = "2023 metadata, JSON lines"
    ITEMS_CSV = "items CSV with named columns"
    ITEMS_MOVIELENS = "MovieLens movies (id::title::genres; no header)"
    ITEMS_PARQUET = "items Parquet with named columns"

    @property
    def is_items(self) -> bool:
        """True for catalogue files, False for interactions."""
        return self.name.startswith("ITEMS")

    @property
    def has_header(self) -> bool:
        """Whether the first line names the columns; fields may be quoted then."""
        return self in (Format.NAMED_CSV, Format.ITEMS_CSV)


# column names of known datasets, per field
NAMES: dict[str, tuple[str, ...]] = {
    "user_id": ("user_id", "user", "userid", "reviewerid", "customer_id", "visitorid"),
    "item_id": (
        "item_id",
        "item",
        "itemid",
        "parent_asin",
        "asin",
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


_NAMED_FIELDS = {"user": "user_id", "item": "item_id"}
"""Names of fields in `--columns` that are shorter than in NAMES."""


@dataclass(frozen=True)
class ReadOptions:
    """What a user states about a file, instead of detecting it."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Field of NAMES → name of its column, or its position from 1."""
    encoding: str | None = None

    @classmethod
    def parse(cls, columns: str | None, encoding: str | None) -> ReadOptions:
        """From `user=…,item=…,time=…` and an encoding. Raises BadInput naming what is wrong."""
        if encoding is not None:
            try:
                codecs.lookup(encoding)
            except LookupError:
                raise BadInput(
                    f"encoding {encoding!r} is unknown; for example utf-16 or latin-1"
                ) from None
        found: dict[str, str] = {}
        for part in columns.split(",") if columns else ():
            name, _, column = (text.strip() for text in part.partition("="))
            known = _NAMED_FIELDS.get(name, name)
            if known not in NAMES or not column:
                fields = ", ".join([*_NAMED_FIELDS, *(n for n in NAMES if not n.endswith("_id"))])
                raise BadInput(
                    f"columns: {part!r} is not FIELD=COLUMN with one of the fields {fields}"
                )
            found[known] = column
        return cls(found, encoding)


DETECTED = ReadOptions()
"""Nothing is stated."""


@dataclass(frozen=True)
class Detected:
    """Format of a file and, for named columns, the position of each field."""

    format: Format
    columns: dict[str, int]
    header: tuple[str, ...] = ()
    separator: str = ","
    encoding: str | None = None
    """None: UTF-8, or by the byte order mark."""
    why: str = ""
    """What the interpretation rests on."""
    time_unit: str = ""
    """Unit of the times in the first rows: seconds, milliseconds, …, or ISO 8601."""
    stated: bool = False
    """Whether the user stated columns or encoding."""

    def interpretation(self) -> dict[str, str]:
        """Field → name of its column."""
        return {f: self.header[position] for f, position in self.columns.items()}


def detect(path: Path, options: ReadOptions = DETECTED) -> Detected:
    """Detect the format of a file. Raises BadDataset for an unsupported one."""
    if path.suffix == ".parquet":
        return _parquet(path, options)
    head = _head(path, options.encoding)
    if not head:
        raise BadDataset(f"{path}: is empty")
    if head[:1] == b"{" or ".json" in path.name or ".ndjson" in path.name:
        if options.columns:
            raise BadDataset(f"{path}: JSON lines have names of their own; pass no columns")
        return _json(head, path, options)
    return _csv(head, path, options)


def find_columns(header: Sequence[str]) -> dict[str, int]:
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


def _head(path: Path, encoding: str | None) -> bytes:
    with open_bytes(path, encoding) as file:
        return read(file, HEAD_BYTES, path).removeprefix(BOM).lstrip()


def _lines(head: bytes) -> Iterator[str]:
    for line in head.split(b"\n")[:_SAMPLED]:
        yield line.decode("utf-8", "replace").strip("\r")


# --- JSON lines ---


def _json(head: bytes, path: Path, options: ReadOptions) -> Detected:
    form, unit = _json_format(head, path)
    names = _JSON_COLUMNS.get(form, ())
    columns = {name: place for place, (name, _) in enumerate(names)}
    header = tuple(column for _, column in names)
    return Detected(form, columns, header, "", options.encoding, "names of the fields", unit)


_JSON_COLUMNS: dict[Format, tuple[tuple[str, str], ...]] = {
    Format.REVIEWS_2014: (
        ("user_id", "reviewerID"),
        ("item_id", "asin"),
        ("time", "unixReviewTime"),
        ("rating", "overall"),
        ("text", "reviewText"),
    ),
    Format.REVIEWS_2023: (
        ("user_id", "user_id"),
        ("item_id", "parent_asin"),
        ("time", "timestamp"),
        ("rating", "rating"),
        ("text", "text"),
    ),
}
"""Format → fields and the names that they are read from."""


def _json_format(head: bytes, path: Path) -> tuple[Format, str]:
    """The format, and the unit of the first time."""
    for line in head.split(b"\n")[:_SAMPLED]:
        try:
            fields = parse_object(line.strip())
            keys = fields.keys()
        except (ValueError, AttributeError):
            continue
        if {"reviewerID", "asin"} <= keys:
            return Format.REVIEWS_2014, time_unit(fields.get("unixReviewTime"))
        if {"user_id", "rating"} <= keys:
            return Format.REVIEWS_2023, time_unit(fields.get("timestamp"))
        if "parent_asin" in keys:
            return Format.ITEMS_2023, ""
        if "asin" in keys:
            return Format.ITEMS_2014, ""
    if path.name.startswith("meta"):  # the first line may exceed HEAD_BYTES
        return (Format.ITEMS_2023 if b"parent_asin" in head else Format.ITEMS_2014), ""
    raise BadDataset(
        f"{path}: unknown JSON lines; expected reviewerID and asin (2014, 2018), "
        "user_id, parent_asin and rating (2023), or the metadata of either"
    )


# --- CSV ---


def _csv(head: bytes, path: Path, options: ReadOptions) -> Detected:
    lines = [line for line in _lines(head) if line.strip()]
    if options.columns:
        return _stated(lines, path, options)
    for separator in _SEPARATORS:
        header = _split(lines[0], separator)
        columns = find_columns(header)
        form = _named(columns, Format.NAMED_CSV, Format.ITEMS_CSV)
        if form and separator != "::":
            return Detected(
                form,
                columns,
                tuple(header),
                separator,
                options.encoding,
                "names of the columns",
                _unit_in(lines[1:], separator, columns.get("time")),
            )
    for separator in _SEPARATORS:
        if detected := _without_names(lines, separator, options):
            return detected
    raise BadDataset(
        f"{path}: unknown CSV; expected a header with user_id, item_id and timestamp (reviews) "
        "or item_id and title (items), or lines of user,item,rating,timestamp; "
        "name the columns: --columns user=…,item=…,time=…"
    )


def _split(line: str, separator: str) -> list[str]:
    if len(separator) > 1:
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return []


def _unit_in(lines: Sequence[str], separator: str, position: int | None) -> str:
    """The unit of the first time in the lines; empty without one."""
    if position is None:
        return ""
    fields = (_split(line, separator) for line in lines)
    units = (time_unit(row[position]) for row in fields if len(row) > position)
    return next(filter(None, units), "")


def _without_names(lines: Sequence[str], separator: str, options: ReadOptions) -> Detected | None:
    rows = [line.strip().split(separator) for line in lines]
    ratings = [row for row in rows if len(row) == 4 and _is_number(row[2]) and _is_number(row[3])]
    if ratings:
        user, item, why = _order_of_ids(ratings)
        columns = {"user_id": user, "item_id": item, "rating": 2, "time": 3}
        names = sorted(("user_id", "item_id"), key=columns.__getitem__)
        header = (*names, "rating", "timestamp")
        unit = time_unit(ratings[0][3])
        form = Format.RATINGS_CSV
        return Detected(form, columns, header, separator, options.encoding, why, unit)
    movies = [row for row in rows if len(row) == 3 and row[0].isdecimal()]
    if separator == "::" and movies:
        header = ("item_id", "title", "categories")
        columns = {name: place for place, name in enumerate(header)}
        encoding = options.encoding or "latin-1"
        why = "MovieLens' fields in their order; its encoding is Latin-1"
        return Detected(Format.ITEMS_MOVIELENS, columns, header, separator, encoding, why)
    return None


def _order_of_ids(rows: Sequence[Sequence[str]]) -> tuple[int, int, str]:
    """The columns of user and item, and why: by Amazon's ids, else as most files have them."""
    found = user_and_item(rows)
    if found is None:
        return (
            0,
            1,
            "user before item is assumed; else pass --columns user=2,item=1,rating=3,time=4",
        )
    user, item = found
    why = f"column {item + 1} has product ids, column {user + 1} has user ids of Amazon"
    return user, item, why


def _stated(lines: Sequence[str], path: Path, options: ReadOptions) -> Detected:
    """By the columns that the user names: by number in a file without a header."""
    separator = max(_SEPARATORS, key=lambda s: (len(_split(lines[0], s)), s == ","))
    header = tuple(_split(lines[0], separator))
    columns, by_name = _positions(header, path, options)
    form = _named(columns, Format.NAMED_CSV, Format.ITEMS_CSV)
    if form is None or (form is Format.ITEMS_CSV and not by_name):
        raise BadDataset(
            f"{path}: the columns stated are {', '.join(sorted(columns))}; interactions need "
            "user, item and time; items need item and title or categories, by name"
        )
    unit = _unit_in(lines[by_name:], separator, columns.get("time"))
    if not by_name:
        form, header = Format.RATINGS_CSV, tuple(f"column {n + 1}" for n in range(len(header)))
    why = "columns as stated"
    return Detected(form, columns, header, separator, options.encoding, why, unit, stated=True)


def _positions(
    header: Sequence[str], path: Path, options: ReadOptions
) -> tuple[dict[str, int], bool]:
    """Field → position of its column, and whether any is stated by name."""
    places = {name.strip(): place for place, name in enumerate(header)}
    columns, by_name = {}, False
    for name, column in options.columns.items():
        if column in places:
            columns[name], by_name = places[column], True
        elif column.isdecimal() and 1 <= int(column) <= len(header):
            columns[name] = int(column) - 1
        else:
            raise BadDataset(
                f"{path}: has no column {column!r} for {name}; its columns: {', '.join(header)}"
            )
    return columns, by_name


# --- Parquet ---


def _parquet(path: Path, options: ReadOptions) -> Detected:
    try:
        schema = pq.read_schema(path)
    except (OSError, ValueError) as error:
        raise BadDataset(f"{path}: not a readable Parquet file ({error})") from None
    header = tuple(schema.names)
    columns = _positions(header, path, options)[0] if options.columns else find_columns(header)
    form = _named(columns, Format.PARQUET, Format.ITEMS_PARQUET)
    if form is None:
        raise BadDataset(
            f"{path}: has no columns user_id, item_id, timestamp, nor item_id and title; "
            "name them: --columns user=…,item=…,time=…"
        )
    why = "columns as stated" if options.columns else "names of the columns"
    unit = _unit_of_column(path, header[columns["time"]]) if "time" in columns else ""
    stated = bool(options.columns)
    return Detected(form, columns, header, "", None, why, unit, stated)


def _unit_of_column(path: Path, name: str) -> str:
    try:
        batch = next(pq.ParquetFile(path).iter_batches(_SAMPLED, columns=[name]), None)
    except (OSError, pa.ArrowException):
        return ""  # reading the file reports the damage
    values = batch.column(0) if batch is not None else []
    return next((time_unit(value.as_py()) for value in values if value.is_valid), "")


def _named(columns: Mapping[str, int], reviews: Format, items: Format) -> Format | None:
    if {"user_id", "item_id", "time"} <= columns.keys():
        return reviews
    if "item_id" in columns and columns.keys() & {"title", "categories"}:
        return items
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

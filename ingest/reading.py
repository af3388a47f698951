"""Read the interactions of a dataset file, in file order, as record batches.

reads   file  any reviews format of `formats.Format`

A block of valid lines is parsed by pyarrow, column by column. Any irregularity sends the block to
the row-by-row parser, which reports each bad line. A test checks that both give the same rows.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from afterclick.errors import BadDataset
from ingest.formats import Detected, Format, detect, parse_object
from ingest.rows import (
    BLOCK_BYTES,
    SCHEMA,
    ReadReport,
    Row,
    all_valid,
    blocks,
    check,
    numbered,
    parse_time,
    records,
    to_batch,
)

_CONTROL = bytes(c for c in range(32) if c not in b"\n\r") + b"\x7f"
_HEX = re.compile(rb"[,;\t|\n] *0[xX]")
"""Hexadecimal numbers, which Arrow parses as integers but the row parser rejects."""
_PARQUET_ROWS = 65_536


def read_interactions(
    path: Path, report: ReadReport, detected: Detected | None = None, block_bytes: int = BLOCK_BYTES
) -> Iterator[pa.RecordBatch]:
    """Yield the interactions of a file in SCHEMA; bad lines go to `report`. Memory: a few blocks.

    Raises BadDataset for an unknown format, an items file, or a file that cannot be read to its
    end.
    """
    detected = detected or detect(path)
    if detected.format.is_items:
        raise BadDataset(f"{path}: contains items ({detected.format}), not interactions")
    if detected.format is Format.PARQUET:
        batches = _parquet(path, detected, report)
    elif detected.format in (Format.REVIEWS_2014, Format.REVIEWS_2023):
        batches = _json(path, detected, report, block_bytes)
    else:
        batches = _csv(path, detected, report, block_bytes)
    for batch in batches:
        if batch.num_rows:
            report.good += batch.num_rows
            yield batch


# --- CSV ---


def _csv(path: Path, detected: Detected, report: ReadReport, size: int) -> Iterator[pa.RecordBatch]:
    # files without a header have no quoting: a " is an ordinary character
    quoting = detected.format.has_header
    source = blocks(path, size, detected.encoding)
    if quoting:
        source = _without_header(source)
    for block in source:
        if quoting and b'"' in block[1]:
            # a quoted field may continue in the next block: parse the rest record by record
            yield from _csv_slow(chain([block], source), detected, report, True)
            return
        batch = _csv_fast(block[1], detected) if len(detected.separator) == 1 else None
        if batch is not None:
            yield batch
        else:
            yield from _csv_slow(iter([block]), detected, report, False)


def _csv_fast(raw: bytes, detected: Detected) -> pa.RecordBatch | None:
    control = _CONTROL.replace(detected.separator.encode(), b"")
    if len(raw.translate(None, control)) != len(raw) or raw.count(b"\r") != raw.count(b"\r\n"):
        return None
    if _HEX.search(b"\n" + raw):
        return None
    names = [f"c{i}" for i in range(len(detected.header))]
    types = {
        "user_id": pa.string(),
        "item_id": pa.string(),
        "time": pa.int64(),
        "rating": pa.float64(),
    }
    selected = {f: names[i] for f, i in detected.columns.items() if f in (*types, "text", "action")}
    try:
        table = pacsv.read_csv(
            io.BytesIO(raw),
            pacsv.ReadOptions(
                column_names=names, block_size=max(len(raw), 1) + 1, use_threads=False
            ),
            pacsv.ParseOptions(delimiter=detected.separator, quote_char=False, double_quote=False),
            pacsv.ConvertOptions(
                column_types={c: types.get(f, pa.string()) for f, c in selected.items()},
                include_columns=list(selected.values()),
                null_values=[""],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != raw.count(b"\n") + (not raw.endswith(b"\n")):
        return None
    columns = {f: table.column(c).combine_chunks() for f, c in selected.items()}
    return _from_columns(columns, table.num_rows)


def _from_columns(columns: dict[str, pa.Array], rows: int) -> pa.RecordBatch | None:
    """The batch of these columns; None if it needs the row-by-row parser."""
    columns["time_ms"] = _as_ms(columns.pop("time"))
    arrays = [_nulls_for_empty(columns.get(f.name, pa.nulls(rows, f.type)), f) for f in SCHEMA]
    batch = pa.record_batch(arrays, schema=SCHEMA)
    return batch if all_valid(batch) else None


def _as_ms(time: pa.Array) -> pa.Array:
    """Milliseconds from seconds, ms, µs or ns by magnitude, as `rows.parse_time`."""
    size = pc.abs(time)
    ms = pc.if_else(pc.less(size, 100_000_000_000_000), time, pc.divide(time, 1000))
    ms = pc.if_else(pc.less(size, 100_000_000_000_000_000), ms, pc.divide(time, 1_000_000))
    return pc.if_else(pc.less(size, 100_000_000_000), pc.multiply(time, 1000), ms)


def _nulls_for_empty(column: pa.Array, field: pa.Field) -> pa.Array:
    if field.name in ("text", "action") and column.null_count < len(column):
        return pc.if_else(pc.equal(column, ""), None, column)
    return column


def _csv_slow(
    source: Iterator[tuple[int, bytes]], detected: Detected, report: ReadReport, quoting: bool
) -> Iterator[pa.RecordBatch]:
    width = len(detected.header)
    for chunk in records(source, quoting, detected.separator):
        rows: list[Row] = []
        for line, raw, fields in chunk:
            try:
                if len(fields) != width:
                    raise ValueError(f"{len(fields)} fields, expected {width}")
                rows.append(_row({f: fields[i] for f, i in detected.columns.items()}))
            except ValueError as error:
                report.refuse(line, str(error), raw)
        yield to_batch(rows)


def _without_header(source: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    for number, raw in source:
        if number == 1:
            lead = len(raw) - len(raw.lstrip())
            skipped, rest = raw[:lead], raw[lead:].partition(b"\n")[2]
            yield skipped.count(b"\n") + 2, rest
        else:
            yield number, raw


# --- JSON lines ---

Pick = Callable[[dict[str, Any]], Row]


def _pick_2014(o: dict[str, Any]) -> Row:
    time = parse_time(o.get("unixReviewTime"))
    return check(o.get("reviewerID"), o.get("asin"), time, o.get("overall"), o.get("reviewText"))


def _pick_2023(o: dict[str, Any]) -> Row:
    item = o.get("parent_asin") or o.get("asin")
    return check(
        o.get("user_id"), item, parse_time(o.get("timestamp")), o.get("rating"), o.get("text")
    )


_PICK: dict[Format, Pick] = {Format.REVIEWS_2014: _pick_2014, Format.REVIEWS_2023: _pick_2023}


def _json(
    path: Path, detected: Detected, report: ReadReport, size: int
) -> Iterator[pa.RecordBatch]:
    pick = _PICK[detected.format]
    for block in blocks(path, size, detected.encoding):
        rows: list[Row] = []
        for number, line in numbered(block):
            try:
                fields = parse_object(line)
                if not isinstance(fields, dict):
                    raise ValueError("not a JSON object")
                rows.append(pick(fields))
            except ValueError as error:
                report.refuse(number, str(error), line)
        yield to_batch(rows)


# --- Parquet ---


def _parquet(path: Path, detected: Detected, report: ReadReport) -> Iterator[pa.RecordBatch]:
    fields = {
        f: detected.header[i] for f, i in detected.columns.items() if f in ("time", *SCHEMA.names)
    }
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(
            _PARQUET_ROWS, columns=list(fields.values())
        ):
            columns = {f: batch.column(c) for f, c in fields.items()}
            yield _parquet_fast(columns, batch.num_rows) or _parquet_slow(columns, number, report)
            number += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise BadDataset(f"{path}: cannot be read to its end ({error})") from None


def _parquet_fast(columns: dict[str, pa.Array], rows: int) -> pa.RecordBatch | None:
    try:
        time = columns["time"]
        if pa.types.is_timestamp(time.type):
            time = time.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
        elif not pa.types.is_integer(time.type):
            return None
        cast = {f: c.cast(SCHEMA.field(f).type) for f, c in columns.items() if f != "time"}
    except pa.ArrowException:
        return None
    if _any_control(cast["user_id"]) or _any_control(cast["item_id"]):
        return None
    return _from_columns({**cast, "time": time}, rows)


def _any_control(column: pa.Array) -> bool:
    return bool(pc.any(pc.match_substring_regex(column, r"[\x00-\x1f\x7f]")).as_py())


def _parquet_slow(columns: dict[str, pa.Array], before: int, report: ReadReport) -> pa.RecordBatch:
    rows: list[Row] = []
    for row in range(len(columns["time"])):
        fields = {f: c[row].as_py() for f, c in columns.items()}
        try:
            rows.append(_row(fields))
        except ValueError as error:
            report.refuse(before + row + 1, str(error), fields)
    return to_batch(rows)


# --- fields of a row with named columns ---


def _row(fields: dict[str, Any]) -> Row:
    return check(
        fields["user_id"],
        fields["item_id"],
        _any_time(fields["time"]),
        fields.get("rating"),
        fields.get("text"),
        _action(fields.get("action")),
    )


_ACTIONS = {"addtocart": "basket", "transaction": "purchase"}
"""RetailRocket's names of actions → ours."""


def _action(value: Any) -> str | None:
    return _ACTIONS.get(value, value) if isinstance(value, str) and value else None


def _any_time(value: Any) -> int:
    """Milliseconds from a number, ISO 8601 text or datetime; without a time zone, UTC."""
    if isinstance(value, str) and len(value) >= 8 and "-" in value[1:]:
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("timestamp: neither a number nor ISO 8601") from None
    if isinstance(value, datetime):
        zoned = value if value.tzinfo else value.replace(tzinfo=UTC)
        return round(zoned.timestamp() * 1000)
    return parse_time(value)

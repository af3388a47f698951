"""What a dataset holds: `afterclick data info`.

reads   file  the reviews and items of a dataset, whole
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ingest.catalogue import read_items
from ingest.datasets import Dataset
from ingest.readers import read_interactions
from ingest.rows import BadLine, ReadReport


@dataclass(frozen=True)
class Facts:
    """Counts of a dataset. `rows` = `good` + `bad_lines`; times are RFC 3339, UTC."""

    path: str
    reviews_file: str
    format: str
    rows: int
    good: int
    bad_lines: int
    bad_samples: list[BadLine]
    users: int
    items: int
    rated: int
    with_text: int
    first: str | None
    last: str | None
    items_file: str | None
    catalogue_items: int
    catalogue_titles: int
    catalogue_bad_lines: int
    ignored: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def facts(dataset: Dataset) -> Facts:
    """Read a dataset to its end and count. Memory: the ids of all rows, about 30 bytes a row."""
    report, catalogue = ReadReport(), ReadReport()
    users, items = [], []
    rated = with_text = 0
    first, last = None, None
    for batch in read_interactions(dataset.reviews, report, dataset.reviews_format):
        users.append(batch["user_id"])
        items.append(batch["item_id"])
        rated += len(batch) - batch["rating"].null_count
        with_text += len(batch) - batch["text"].null_count
        low, high = (v.as_py() for v in pc.min_max(batch["time_ms"]).values())
        first, last = min(first or low, low), max(last or high, high)
    listed = (
        list(read_items(dataset.items, catalogue, dataset.items_format)) if dataset.items else []
    )
    return Facts(
        path=str(dataset.path),
        reviews_file=dataset.reviews.name,
        format=str(dataset.reviews_format.format),
        rows=report.rows,
        good=report.good,
        bad_lines=report.bad,
        bad_samples=report.samples,
        users=_distinct(users),
        items=_distinct(items),
        rated=rated,
        with_text=with_text,
        first=_rfc3339(first),
        last=_rfc3339(last),
        items_file=dataset.items.name if dataset.items else None,
        catalogue_items=len({item.item_id for item in listed}),
        catalogue_titles=len({item.item_id for item in listed if item.title}),
        catalogue_bad_lines=catalogue.bad,
        ignored=dataset.ignored,
    )


def _distinct(columns: list[pa.Array]) -> int:
    return int(pc.count_distinct(pa.chunked_array(columns, pa.string())).as_py())


def _rfc3339(time_ms: int | None) -> str | None:
    return None if time_ms is None else datetime.fromtimestamp(time_ms / 1000, UTC).isoformat()

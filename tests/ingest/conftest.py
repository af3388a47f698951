"""Small datasets in every format."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest

from ingest.generate import ShopConfig, generate_shop
from ingest.reading import read_interactions
from ingest.rows import ReadReport

DAY_S = 86_400


def ratings_csv(folder: Path, rows: int = 100, name: str = "ratings_Toys.csv") -> Path:
    """An official ratings file: sorted by item, with unordered times one day apart."""
    lines = [
        f"A{n % 17:03},B{n % 7:03},{n % 5 + 1}.0,{1_300_000_000 + (n * 37 % rows) * DAY_S}"
        for n in range(rows)
    ]
    path = folder / name
    path.write_text("\n".join(sorted(lines, key=lambda line: line.split(",")[1])) + "\n")
    return path


def json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Rows as JSON lines, compressed if the name ends in .gz."""
    content = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path: Path, block_bytes: int = 1 << 20) -> tuple[list[dict[str, Any]], ReadReport]:
    """Every interaction of a file, and the report."""
    report = ReadReport()
    rows = [
        row
        for batch in read_interactions(path, report, block_bytes=block_bytes)
        for row in batch.to_pylist()
    ]
    assert report.rows == report.good + report.bad
    assert report.good == len(rows)
    return rows, report


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated shop: 300 users, 120 items, 3,000 reviews."""
    folder = tmp_path_factory.mktemp("data") / "shop"
    generate_shop(folder, ShopConfig(users=300, items=120, events=3_000, days=200))
    return folder

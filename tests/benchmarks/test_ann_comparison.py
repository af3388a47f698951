"""The index benchmark compares every kind of index with exact search."""

from __future__ import annotations

import orjson
from typer.testing import CliRunner

from infra.cli import app


def test_each_kind_is_built_and_compared_with_exact_search() -> None:
    result = CliRunner().invoke(
        app,
        [
            "bench",
            "index",
            "--items",
            "4000",
            "--items",
            "2000",
            "--dim",
            "16",
            "--queries",
            "20",
            "--json",
        ],
    )
    assert result.exit_code == 0, result.output
    rows = orjson.loads(result.stdout.splitlines()[-1])["rows"]
    assert [(row["items"], row["kind"], row["chosen"]) for row in rows] == [
        (items, kind, kind == "flat") for items in (4000, 2000) for kind in ("flat", "ivf", "hnsw")
    ]
    flat, ivf, hnsw = rows[:3]
    assert (flat["recall@10"], flat["recall@100"]) == (1.0, 1.0)
    assert 0.5 < ivf["recall@10"] <= 1.0
    assert 0.9 < hnsw["recall@10"] <= 1.0
    assert ivf["index_mib"] <= flat["index_mib"] < hnsw["index_mib"]
    assert all(row["query_ms_p50"] > 0 for row in rows)

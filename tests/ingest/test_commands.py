"""The commands: figures as JSON, errors as one line with an exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from afterclick.settings import Settings
from tests.ingest.conftest import ratings_csv
from tests.ingest.test_replay import run_command as start

Invoke = Callable[..., Any]


def run(settings: Settings, *args: str) -> tuple[int, bytes, bytes]:
    process = start(settings, *args)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def invoke() -> Invoke:
    from infra.cli import app

    return lambda *args, **env: CliRunner().invoke(app, args, env=env)


def test_info_counts_and_shows_bad_lines(tmp_path: Path, invoke: Invoke) -> None:
    path = ratings_csv(tmp_path, 50)
    path.write_text(path.read_text() + "garbage\n")
    answer = orjson.loads(invoke("data", "info", str(path), "--json").stdout.splitlines()[-1])
    assert (answer["rows"], answer["good"], answer["bad_lines"]) == (51, 50, 1)
    assert answer["bad_samples"] == [
        {"line": 51, "why": "1 fields, expected 4", "excerpt": "garbage"}
    ]
    shown = invoke("data", "info", str(path)).stdout
    assert "51 = 50 good + 1 bad" in shown
    assert "line 51: 1 fields, expected 4: garbage" in shown


def test_info_states_the_interpretation_and_what_is_dropped(tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "reviews.csv").write_text(
        "0143026860,A1V6B6TNIC10QE,1.0,1424304000\n"
        "0143026860,A1V6B6TNIC10QE,2.0,1424303999\n"
        "B0000DYV9H,A2SUAM1J3GNN3B,9.0,1424304000\n"
        "B0000DYV9H,A2SUAM1J3GNN3B,7.0,1424304000\n"
        "B0000DYV9H,A2SUAM1J3GNN3B,4.0,1424304000\n"
    )
    (tmp_path / "items.csv").write_text("item_id,title,price\nB0000DYV9H,Hub,{a:b}\n")
    answer = orjson.loads(invoke("data", "info", str(tmp_path), "--json").stdout.splitlines()[-1])
    assert answer["interpretation"] == {
        "user_id": "user_id",
        "item_id": "item_id",
        "rating": "rating",
        "time": "timestamp",
    }
    assert answer["interpreted_by"] == "column 1 has product ids, column 2 has user ids of Amazon"
    assert (answer["time_unit"], answer["in_time_order"]) == ("seconds", False)
    assert (answer["duplicates"], answer["items_with_metadata"]) == (1, 0.5)
    assert answer["dropped"] == [{"reason": "rating: outside 0 to 5", "count": 2, "lines": [3, 4]}]
    assert answer["catalogue_dropped"] == [
        {"reason": "price is not a price", "count": 1, "lines": [2]}
    ]
    shown = invoke("data", "info", str(tmp_path)).stdout
    assert "not used: 2 times rating: outside 0 to 5 (lines 3, 4)" in shown


def test_columns_are_stated_of_a_named_dataset(tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "log.csv").write_text("when,who,what\n1,u,i\n")
    columns = ("--columns", "user=who,item=what,time=when")
    found = invoke("data", "info", str(tmp_path), *columns, "--json")
    assert orjson.loads(found.stdout.splitlines()[-1])["interpretation"] == {
        "user_id": "who",
        "item_id": "what",
        "time": "when",
    }
    refused = invoke("data", "info", *columns, DATASET="")
    assert "--columns and --encoding are of a dataset" in str(refused.exception)


def test_info_reads_the_dataset_from_the_environment(shop: Path, invoke: Invoke) -> None:
    answer = orjson.loads(
        invoke("data", "info", "--json", DATASET=str(shop)).stdout.splitlines()[-1]
    )
    assert (answer["users"], answer["catalogue_items"]) == (300, 120)


def test_make_reports_the_generated_files(tmp_path: Path, invoke: Invoke) -> None:
    sizes = ("--users", "60", "--items", "60", "--events", "500", "--end", "2026-01-02")
    result = invoke("data", "make", "--out", str(tmp_path / "s"), *sizes, "--json")
    answer = orjson.loads(result.stdout.splitlines()[-1])
    assert (answer["events"], answer["items"]) == (500, 60)
    assert (tmp_path / "s" / "reviews.csv").read_text().count("\n") == 501


def test_replay_and_items_print_counts_and_errors_are_one_line(
    shop: Path, settings: Settings
) -> None:
    code, out, err = run(settings, "items", str(shop), "--json")
    assert (code, orjson.loads(out)["sent"]) == (0, 120), err
    code, out, err = run(settings, "replay", str(shop), "--limit", "500", "--clock", "rebased")
    assert code == 0, err
    assert b"500 events delivered" in out
    code, out, _ = run(settings, "status", "--json")
    status = orjson.loads(out)
    assert (status["state"], status["delivered"], status["active"]) == ("done", 500, False)
    code, _, err = run(settings, "pause")
    assert (code, err.count(b"\n")) == (3, 1)
    code, _, err = run(settings, "replay", str(shop), "--speed", "warp")
    assert (code, err.strip().count(b"\n")) == (2, 0)
    assert b"expected e.g. 1h/s" in err

"""Recorded results, and the page generated from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from afterclick.errors import BadInput
from infra.results_page import page, read_record, record
from infra.results_sections import SECTIONS

OUTPUT = {"swaps": 20, "errors": 0, "times_quiet_p99": 3.59}


def printing(output: object) -> list[str]:
    return [sys.executable, "-c", f"print('log line'); print('{json.dumps(output)}')"]


def test_a_recorded_result_is_on_the_page_with_its_bar(tmp_path: Path) -> None:
    stored = record("swap", printing(OUTPUT), tmp_path)
    assert read_record(tmp_path / "swap.json") == stored
    assert stored.output == OUTPUT
    text = page(tmp_path)
    assert "| p99 compared with the time before | 3.59 times | ≤ 2 times | no |" in text
    assert "| errors | 0 | ≤ 0 | yes |" in text
    assert stored.commit in text


def test_a_command_without_json_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no JSON object"):
        record("swap", [sys.executable, "-c", "print('done')"], tmp_path)
    with pytest.raises(BadInput, match="exit status 3"):
        record("swap", [sys.executable, "-c", "print('{}'); raise SystemExit(3)"], tmp_path)
    with pytest.raises(BadInput, match="unknown result"):
        record("speed", printing(OUTPUT), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_record_without_a_required_figure_is_rejected_by_name(tmp_path: Path) -> None:
    record("swap", printing({"errors": 0}), tmp_path)
    with pytest.raises(BadInput, match=r"swap\.json: no times_quiet_p99"):
        page(tmp_path)


def test_quality_is_a_table_of_models_by_protocol(tmp_path: Path) -> None:
    metrics = {"hr@10": 0.0819, "ndcg@10": 0.043}
    protocols = dict.fromkeys(("live", "live_same_day", "live_later", "returning", "cold"), metrics)
    parts = dict.fromkeys(("live_event", "trends", "staleness"), metrics)
    output = {
        "models": {"blend": protocols},
        "blend": {"times_decayed_popularity": 1.5},
        "freshness": {"blend": {"parts": parts}},
        "split": {"users": {"live": 3100}},
    }
    record("evaluate", printing(output), tmp_path)
    shown = page(tmp_path)
    assert "| blend | 0.0819 (0.0430) |" in shown
    assert "| live | 0.0819 | ≥ 0.085 | no |" in shown
    assert "| returning | 0.0819 | ≥ 0.081 | yes |" in shown


def test_every_section_has_a_record_in_the_repository() -> None:
    folder = Path(__file__).parents[2] / "docs" / "results"
    assert {path.stem for path in folder.glob("*.json")} >= set(SECTIONS)

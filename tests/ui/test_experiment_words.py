"""What the panel of experiments says of the figures it is given."""

from __future__ import annotations

from typing import Any

import pytest

from ui.experiments import experiment_panel, newest


def estimate(low: float, high: float) -> dict[str, float]:
    return {"value": (low + high) / 2, "low": low, "high": high}


def arm(name: str, difference: dict[str, float] | None, users: int = 100) -> dict[str, Any]:
    return {
        "name": name,
        "policy": "blend",
        "share": 0.5,
        "users": users,
        "lists": 4 * users,
        "ctr": estimate(0.04, 0.08),
        "conversion": estimate(0.1, 0.2),
        "ctr_difference": difference,
        "ctr_p_value": None if difference is None else 0.0123,
    }


def experiment(name: str, stopped: str | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "created": "2026-01-02T03:04:05Z",
        "stopped": stopped,
        "traffic": 0.5,
        "note": "",
    }


def panel(difference: dict[str, float], broken: bool = False, users: int = 100) -> dict[str, Any]:
    arms = [arm("old", None, users), arm("new", difference, users)]
    ratio = {"p_value": 0.0001 if broken else 0.5, "broken": broken}
    results = {"name": "e", "running": True, "level": 0.95, "arms": arms, "sample_ratio": ratio}
    return experiment_panel(experiment("e"), results)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.03, "better"), (-0.03, -0.01, "worse"), (-0.01, 0.01, "open")],
)
def test_an_arm_is_better_or_worse_only_where_the_interval_says_so(
    low: float, high: float, verdict: str
) -> None:
    found = panel(estimate(low, high))
    assert [row["verdict"] for row in found["arms"]] == ["", verdict]
    assert found["arms"][0]["against"] == "control"
    assert found["arms"][1]["against"].endswith("p 0.012")
    assert found["arms"][0]["ctr"] == "6.0 % (4.0 to 8.0)"
    assert found["arms"][0]["bar"] == {"low": 50.0, "value": 75.0, "high": 100.0}
    assert found["when"] == "runs since 2026-01-02 03:04, 50% of the users"


def test_nothing_is_read_from_a_broken_split() -> None:
    found = panel(estimate(0.01, 0.03), broken=True)
    assert found["broken"]
    assert found["ratio"].startswith("Broken")
    assert (found["arms"][1]["verdict"], found["arms"][1]["against"]) == ("", "-")


def test_before_anybody_came_there_are_no_figures() -> None:
    found = panel(estimate(0.0, 0.0), users=0)
    assert found["ratio"] == "Nobody has come yet."
    assert [(row["ctr"], row["conversion"]) for row in found["arms"]] == [("", "")] * 2


def test_what_runs_stands_before_what_was_stopped_and_the_newest_first() -> None:
    kept = [
        experiment("a"),
        experiment("b", "2026-01-03"),
        experiment("c"),
        experiment("d", "2026-01-04"),
    ]
    assert [one["name"] for one in newest(kept)] == ["c", "a", "d", "b"]
    assert len(newest(kept * 3)) == 4

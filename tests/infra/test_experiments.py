"""`afterclick experiments`, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.infra.test_commands import afterclick


def test_an_experiment_is_created_listed_shown_and_stopped(tmp_path: Path) -> None:
    created = afterclick(
        *(tmp_path, "experiments", "create", "first", "--traffic", "0.5", "--json"),
        *("--arm", "old:policy=popular,share=3", "--arm", "new:explore=0.1,weights.trend=2"),
    )
    assert created.returncode == 0, created.stderr
    arms = json.loads(created.stdout)["arms"]
    assert (arms[0]["policy"], arms[0]["share"]) == ("popular", 3.0)
    assert (arms[1]["explore"], arms[1]["weights"]) == (0.1, {"trend": 2.0})
    again = afterclick(tmp_path, "experiments", "create", "first", "--arm", "a", "--arm", "b")
    assert (again.returncode, "already" in again.stderr) == (2, True)
    shown = json.loads(afterclick(tmp_path, "experiments", "show", "first", "--json").stdout)
    assert [arm["users"] for arm in shown["arms"]] == [0, 0]
    assert shown["sample_ratio"]["broken"] is False
    listed = afterclick(tmp_path, "experiments", "ls").stdout
    assert "first" in listed
    assert "explore=0.1" in listed
    assert afterclick(tmp_path, "experiments", "stop", "first").returncode == 0
    assert afterclick(tmp_path, "experiments", "stop", "first").returncode == 2
    assert json.loads(afterclick(tmp_path, "experiments", "ls", "--json").stdout)["experiments"][0][
        "stopped"
    ]


def test_an_experiment_that_makes_no_sense_is_one_line(tmp_path: Path) -> None:
    for arms in (
        ("--arm", "one"),
        ("--arm", "a:policy=best", "--arm", "b"),
        ("--arm", "a:policy", "--arm", "b"),
    ):
        answer = afterclick(tmp_path, "experiments", "create", "x", *arms)
        assert answer.returncode == 2, answer.stdout
        assert "Traceback" not in answer.stderr
    assert afterclick(tmp_path, "experiments", "show", "x").returncode == 2

"""`afterclick rules` and `afterclick db`, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.infra.test_commands import afterclick


def test_rules_are_added_listed_and_removed(tmp_path: Path) -> None:
    added = afterclick(
        *(tmp_path, "rules", "add", "boost", "brand:Sony", "price:..50", "--amount", "2"),
        *("--ends", "2031-01-01", "--note", "summer", "--json"),
    )
    assert added.returncode == 0, added.stderr
    rule = json.loads(added.stdout)
    assert (rule["query"], rule["amount"], rule["ends"]) == (
        ["brand:Sony", "price:..50"],
        2.0,
        "2031-01-01T00:00:00+00:00",
    )
    listed = json.loads(afterclick(tmp_path, "rules", "ls", "--json").stdout)["rules"]
    assert [(r["rule_id"], r["in_force"], r["note"]) for r in listed] == [
        (rule["rule_id"], True, "summer")
    ]
    assert rule["rule_id"] in afterclick(tmp_path, "rules", "ls").stdout
    assert afterclick(tmp_path, "rules", "rm", rule["rule_id"]).returncode == 0
    again = afterclick(tmp_path, "rules", "rm", rule["rule_id"])
    assert (again.returncode, "NotFound" in again.stderr) == (2, True)


def test_a_rule_that_makes_no_sense_is_one_line(tmp_path: Path) -> None:
    answer = afterclick(tmp_path, "rules", "add", "boost", "colour:red")
    assert answer.returncode == 2
    assert "FIELD:VALUE" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_tables_can_be_made_and_taken_back(tmp_path: Path) -> None:
    assert "is at base" in afterclick(tmp_path, "db", "status").stdout
    assert afterclick(tmp_path, "db", "upgrade").returncode == 0
    assert "is at 0003" in afterclick(tmp_path, "db", "status").stdout
    assert "is at base" in afterclick(tmp_path, "db", "downgrade", "base").stdout
    assert afterclick(tmp_path, "db", "downgrade", "nosuch").returncode == 2

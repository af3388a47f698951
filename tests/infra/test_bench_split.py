"""A made-up split is one that `afterclick benchmark` takes, and has something to learn in it."""

from __future__ import annotations

import numpy as np
import orjson
from typer.testing import CliRunner

from afterclick.errors import BadInput
from infra.benches.split import Bench, made
from infra.cli import app

SIZES = ["--users", "400", "--items", "3000", "--interactions", "20000", "--trials", "2", "--json"]


def figures(model: str) -> dict[str, float]:
    result = CliRunner().invoke(app, ["bench", "split", "--model", model, *SIZES])
    assert result.exit_code == 0, result.output
    found: dict[str, float] = orjson.loads(result.stdout.splitlines()[-1])
    return found


def test_a_model_that_knows_the_users_beats_popularity_on_it() -> None:
    popular, neighbours = figures("popularity"), figures("item_item")
    assert (popular["users"], popular["items"] > 2000) == (400, True)
    assert neighbours["ndcg@20"] > 1.2 * popular["ndcg@20"]
    assert neighbours["seconds"] > neighbours["tune_seconds"]
    assert neighbours["cpu_s"] > 0


def test_each_pair_is_there_once_in_order_of_time() -> None:
    pairs = made(Bench("als", users=400, items=3000, interactions=20_000))
    assert 10_000 < len(pairs) <= 20_000
    assert not pairs.duplicated(["user_id", "item_id"]).any()
    assert np.all(np.diff(pairs["timestamp"]) > 0)


def test_a_model_that_does_not_exist_is_refused() -> None:
    result = CliRunner().invoke(app, ["bench", "split", "--model", "none", *SIZES])
    assert isinstance(result.exception, BadInput)
    assert "popularity, item_item" in str(result.exception)

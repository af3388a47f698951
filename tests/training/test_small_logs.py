"""Small logs: too few interactions are rejected with the reason, small shops are trained."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from afterclick.errors import BadDataset
from afterclick.tree_ranker import FILE
from ingest.generate import DAY_S, ShopConfig, generate_shop
from tests.training import shop
from training import publish, workspace
from training.interactions import Interactions
from training.pipeline import Pipeline
from training.workspace import Anchor

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(900)]


def test_one_event_is_too_few_to_train_on(pipeline: Pipeline) -> None:
    shop.write_log(pipeline.settings.archive, [shop.event("u", "a")])
    with pytest.raises(BadDataset, match=r"too few interactions .*; ingest more events"):
        pipeline.run_all()
    assert publish.champion(pipeline.settings.kafka) is None


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (shop.interactions([(0, 0)], 1, 1), "none is older than the holdout"),
        (
            shop.interactions(shop.every_pair(12, 12), 12, 12, days=0),
            "none is older than the holdout",
        ),
        (
            shop.interactions(shop.every_pair(1, 30), 1, 30),
            "no item has 5, the most frequent one has 1",
        ),
        (shop.interactions(shop.every_pair(30, 1), 30, 1), "no user has two"),
        (shop.interactions([(u, u % 3) for u in range(60)], 60, 3), "no user has two"),
    ],
)
@pytest.mark.parametrize("titles", [{}, {"x": "red lamp", "y": "blue lamp", "i0": "green lamp"}])
def test_too_few_interactions_are_rejected_with_the_reason(
    pipeline: Pipeline, rows: Interactions, titles: dict[str, str], problem: str
) -> None:
    shop.write_tables(pipeline.settings, rows, titles)
    with pytest.raises(BadDataset, match=problem):
        pipeline.train()
    with pytest.raises(workspace.MissingStep, match="pipeline train"):
        pipeline.evaluate()


def test_a_shop_smaller_than_a_list_is_trained_and_evaluated(pipeline: Pipeline) -> None:
    shop.write_tables(pipeline.settings, shop.interactions(shop.every_pair(6, 6), 6, 6))
    pipeline.train()
    assert pipeline.evaluate().passed


def test_a_past_without_frequent_items_gives_a_model_without_a_ranker(pipeline: Pipeline) -> None:
    lines: list[str] = []
    pipeline.progress = lines.append
    pairs = [((item + round_) % 30, item) for round_ in range(6) for item in range(30)]
    shop.write_tables(pipeline.settings, shop.interactions(pairs, 30, 30))
    pipeline.train()
    assert [line for line in lines if line.startswith("no ranker: ")]
    evaluation = pipeline.evaluate()
    assert evaluation.passed
    assert [c.other for c in evaluation.comparisons] == ["trends"]
    assert evaluation.metrics.keys() == evaluation.against["trends"].keys()


def test_a_shop_of_20_days_gets_a_ranker_and_a_verdict(pipeline: Pipeline, tmp_path: Path) -> None:
    generate_shop(tmp_path / "shop", ShopConfig(users=1200, items=250, events=9000, days=20))
    rows = list(csv.DictReader((tmp_path / "shop" / "reviews.csv").open()))
    start = int(rows[0]["timestamp"])
    shop.write_log(
        pipeline.settings.archive,
        [
            shop.event(r["user_id"], r["item_id"], (int(r["timestamp"]) - start) / DAY_S)
            for r in rows
        ],
    )
    _, evaluation, published = pipeline.run_all()
    assert (pipeline.settings.artifacts / published.version / FILE).is_file()
    assert evaluation.verdict == "passed"
    assert evaluation.comparisons[0].other == "trends"
    assert evaluation.detectable_loss is not None
    assert evaluation.final is not None
    assert evaluation.final.problem is None
    assert Anchor.read(pipeline.home) == Anchor(version=published.version)

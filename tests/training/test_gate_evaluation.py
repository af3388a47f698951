"""What a challenger is compared with, what is reported as missing, and the check of the final
model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from afterclick import artifact
from afterclick import model as models
from afterclick.model import Model
from afterclick.settings import StreamSettings, TrainingSettings
from afterclick.tree_ranker import FILE, TreeRanker
from ingest.generate import ShopConfig, generate_shop
from training import gate_evaluation
from training.challenger import (
    BOOTSTRAP,
    HOLDOUT_MODELS,
    Evaluation,
    RunMetadata,
    copy_model,
    write_model,
)
from training.config import AlsConfig, ModelConfig, RankerConfig
from training.evaluation import holdout, reviews
from training.fit import FittedModel, ModelTrainer
from training.gate_evaluation import GateRun
from training.models.als import implicit_als
from training.workspace import Anchor

DAY_MS = 86_400_000
SETTINGS = TrainingSettings(holdout=0.2)
CONFIG = ModelConfig(
    als=AlsConfig(rank=16, reg=0.1, iterations=8, engine="implicit"),
    towers=None,
    ncf=None,
    ranker=RankerConfig(cuts=2, queries=1500, trees=40),
)


@dataclass(frozen=True)
class Shop:
    """A generated shop of 20 days with a trained challenger."""

    data: reviews.Reviews
    run: RunMetadata
    final: FittedModel
    holdout_model: FittedModel
    ranker: TreeRanker

    def gate_run(
        self,
        home: Path,
        champion: str | None = None,
        final: Model | None = None,
        learned: bool = True,
    ) -> GateRun:
        """The challenger `new` in a home folder, with another final model, or without a ranker."""
        folder = home / "challengers" / "new"
        if not folder.exists():
            folder.mkdir(parents=True)
            ranker = self.ranker if learned else None
            fitted = replace(self.final, model=final or self.final.model)
            write_model(folder, "model", fitted, ranker, self.run)
            write_model(folder, "holdout_model", self.holdout_model, ranker, self.run)
        return GateRun(folder, self.run, self.data.log, champion, home)

    def publish(self, home: Path, version: str, cut_ms: int | None) -> None:
        """Keep the challenger's holdout model as that of a published version."""
        source = self.gate_run(home).folder / "holdout_model"
        copy_model(source, home / HOLDOUT_MODELS, version, {})
        manifest = artifact.read_manifest(home / HOLDOUT_MODELS / version)
        changed = manifest.model_copy(update={"cut_ms": cut_ms})
        (home / HOLDOUT_MODELS / version / artifact.MANIFEST).write_text(changed.model_dump_json())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    generate_shop(folder, ShopConfig(users=1500, items=300, events=16_000, days=20))
    data = reviews.load(folder, StreamSettings().signals)
    cut_ms = holdout.cut_of(data.log, SETTINGS.holdout)
    past = data.log.before(cut_ms)
    trainer = ModelTrainer(CONFIG, data.texts, implicit_als)
    run = RunMetadata(version="new", cut_ms=cut_ms, parameters={}, lineage={}, seconds={})
    ranker = trainer.fit_ranker(past).trees
    return Shop(data, run, trainer.fit(data.log, "new"), trainer.fit(past, "new"), ranker)


def evaluate(gate_run: GateRun, settings: TrainingSettings = SETTINGS) -> Evaluation:
    return gate_evaluation.evaluate(gate_run, settings, lambda _: None)


def test_a_first_model_is_compared_with_trends_and_becomes_the_anchor(
    shop: Shop, tmp_path: Path
) -> None:
    found = evaluate(shop.gate_run(tmp_path))
    assert [c.other for c in found.comparisons] == ["trends"]
    assert (found.verdict, found.passed, found.new_anchor) == ("passed", True, True)
    assert found.metrics["live.ndcg@50"] > found.against["trends"]["live.ndcg@50"]
    assert found.own_share == 0.0
    assert found.detectable_loss is not None
    assert "would detect a loss of" in found.reason


def test_a_model_without_a_ranker_is_scored_by_the_fallback_ranker(
    shop: Shop, tmp_path: Path
) -> None:
    shop.publish(tmp_path, "old", shop.run.cut_ms)
    gate_run = shop.gate_run(tmp_path / "second", learned=False)
    assert not (gate_run.folder / "holdout_model" / FILE).exists()
    found = evaluate(replace(gate_run, champion="old", home=tmp_path))
    assert [c.other for c in found.comparisons] == ["champion", "trends"]
    assert all(c.difference is not None for c in found.comparisons)
    assert found.metrics["live.ndcg@50"] != found.against["champion"]["live.ndcg@50"]


def test_the_same_model_passes_against_champion_and_anchor(shop: Shop, tmp_path: Path) -> None:
    shop.publish(tmp_path, "old", shop.run.cut_ms)
    shop.publish(tmp_path, "older", shop.run.cut_ms)
    Anchor(version="older").write(tmp_path)
    found = evaluate(shop.gate_run(tmp_path, "old"))
    assert [(c.other, c.margin) for c in found.comparisons] == [
        ("champion", SETTINGS.gate_margin),
        ("anchor", SETTINGS.anchor_margin),
        ("trends", SETTINGS.gate_margin),
    ]
    assert [c.difference for c in found.comparisons[:2]] == [0.0, 0.0]
    assert (found.verdict, found.new_anchor) == ("passed", False)  # equal, not better


def test_a_champion_without_a_holdout_model_is_reported_and_the_setting_decides(
    shop: Shop, tmp_path: Path
) -> None:
    gate_run = shop.gate_run(tmp_path, "lost")
    found = evaluate(gate_run)
    assert "champion not compared: the holdout model of lost is missing" in found.reason
    assert (found.verdict, found.passed) == ("undecided", True)
    kept = evaluate(gate_run, SETTINGS.model_copy(update={"when_undecided": "keep"}))
    assert (kept.verdict, kept.passed) == ("undecided", False)
    assert "the champion is kept" in kept.reason


def test_a_bootstrap_model_does_not_keep_the_first_model_out(shop: Shop, tmp_path: Path) -> None:
    keep = SETTINGS.model_copy(update={"when_undecided": "keep", "holdout_queries": 20})
    found = evaluate(shop.gate_run(tmp_path, f"new{BOOTSTRAP}"), keep)
    assert (found.verdict, found.passed) == ("undecided", True)
    assert "champion not compared: new-first is a bootstrap model" in found.reason


def test_questions_start_at_the_later_cut(shop: Shop, tmp_path: Path) -> None:
    later = shop.run.cut_ms + DAY_MS // 2
    shop.publish(tmp_path, "old", later)
    found = evaluate(shop.gate_run(tmp_path, "old"))
    assert found.from_ms == later
    assert found.questions < evaluate(shop.gate_run(tmp_path)).questions
    assert "questions from" in found.reason


@pytest.mark.parametrize(
    ("cut_ms", "problem"),
    [
        (None, "the manifest of the holdout model of old has no cut_ms"),
        (2**52, "contaminated: the holdout model of old has seen the whole holdout"),
    ],
)
def test_a_champion_that_cannot_be_compared_is_reported(
    shop: Shop, tmp_path: Path, cut_ms: int | None, problem: str
) -> None:
    shop.publish(tmp_path, "old", cut_ms)
    found = evaluate(shop.gate_run(tmp_path, "old"))
    assert f"champion not compared: {problem}" in found.reason
    assert found.from_ms == shop.run.cut_ms
    assert found.comparisons[0].verdict == found.verdict == "undecided"
    assert "champion" not in found.against


def shuffled_factors(model: Model) -> Model:
    assert model.factors is not None
    order = np.random.default_rng(1).permutation(len(model))
    return replace(model, factors=model.factors[order])


def shifted_ids(model: Model) -> Model:
    return replace(model, item_ids=np.roll(model.item_ids, 1))


@pytest.mark.parametrize("corrupt", [shuffled_factors, shifted_ids])
def test_a_corrupted_final_model_is_refused(
    shop: Shop, tmp_path: Path, corrupt: Callable[[Model], Model]
) -> None:
    control = evaluate(shop.gate_run(tmp_path / "control"))
    assert control.passed
    assert control.final is not None
    assert control.final.problem is None
    assert control.final.parts["als"][0] > control.final.parts["als"][1] > 0.55
    assert control.final.overlap > 0.4
    found = evaluate(shop.gate_run(tmp_path / "corrupted", final=corrupt(shop.final.model)))
    assert (found.verdict, found.passed) == ("refused", False)
    assert found.final is not None
    assert found.final.problem is not None
    assert found.metrics == control.metrics  # the holdout model alone shows nothing


def test_the_share_of_targets_from_shown_lists_is_reported(shop: Shop, tmp_path: Path) -> None:
    shown = np.where(np.arange(len(shop.data.log)) % 2, np.nan, 1.0).astype(np.float32)
    log = replace(shop.data.log, propensity=shown)
    found = evaluate(replace(shop.gate_run(tmp_path), log=log))
    assert found.own_share is not None
    assert 0.3 < found.own_share < 0.9


def test_the_manifest_holds_the_cut(shop: Shop, tmp_path: Path) -> None:
    folder = shop.gate_run(tmp_path).folder
    for name in ("model", "holdout_model"):
        assert models.load(folder / name)[1].cut_ms == shop.run.cut_ms

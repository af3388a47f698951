"""From a log to a served model: each step, the gate, the record in MLflow, and what a broken run leaves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from afterclick import artifact
from afterclick import model as models
from afterclick.errors import AlreadyRunning, BadArtifact
from afterclick.events import Item
from afterclick.settings import Settings
from tests.scoring.examples import a_model
from tests.training import shop
from tests.training.candidates import champion
from training import gate, publish, workspace
from training.challenger import RANKER, Evaluation
from training.lock import exclusive
from training.mlflow_registry import MlflowRegistry
from training.pipeline import Pipeline
from training.trained import Trained

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def pipeline(spark: SparkSession, settings: Settings) -> Pipeline:
    """The pipeline of a small shop whose log is written."""
    small = settings.training.model_copy(update={"rank": 8, "iterations": 4, "questions": 200})
    settings = settings.model_copy(update={"training": small})
    shop.write_log(settings.archive, shop.drifting_events())
    shop.publish_items(
        settings.kafka, [Item(item_id="cold", title="A thing that nobody bought yet")]
    )
    shop.publish_items(
        settings.kafka, [Item(item_id=f"i{i}", title=f"Thing {i % 2}") for i in range(20)]
    )
    return Pipeline(settings)


def refuse(pipeline: Pipeline) -> None:
    """Let the newest candidate's verdict be a refusal."""
    folder = workspace.latest(pipeline.home / "candidates", "")[1]
    path = folder / "evaluation.json"
    verdict = Evaluation.model_validate_json(path.read_text())
    path.write_text(
        verdict.model_copy(update={"passed": False, "reason": "worse"}).model_dump_json()
    )


def test_the_whole_way_twice(pipeline: Pipeline) -> None:
    """One test, for each run costs half a minute: publish, record, compare, refuse, roll back."""
    kafka = pipeline.settings.kafka
    with pytest.raises(workspace.MissingStep, match="pipeline etl"):
        pipeline.train()
    assert Trained.read(pipeline.home) is None
    report, evaluation, published = pipeline.everything()
    assert Trained.read(pipeline.home) == Trained(
        version=published.version, positions=report.positions
    )
    assert report.balanced()
    assert evaluation.passed
    assert evaluation.metrics["live.hr@10"] > evaluation.against["trends"]["live.hr@10"]

    served, manifest = models.load(
        pipeline.settings.artifacts / published.version, published.manifest_sha256
    )
    assert {RANKER, "index.faiss", "als_item_factors.npy", "content.npy"} <= set(manifest.files)
    assert served.words is not None
    assert len(served.words.words) > 0
    assert manifest.parameters["index"]["recall@100"] == 1.0
    assert manifest.lineage["positions"] == report.positions
    assert "cold" in served.index
    first = f"{published.version}-first"  # what was served while the ranker was trained
    assert (pipeline.settings.artifacts / first).is_dir()
    assert publish.champion(kafka) == published

    registry = MlflowRegistry(pipeline.settings)
    entry = registry.get("champion")
    run = registry.client.get_run(entry.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["rank"] == "8"
    assert run.data.metrics["live.ndcg_at_10"] == pytest.approx(evaluation.metrics["live.ndcg@10"])
    assert run.data.tags["positions"] == str(report.positions)
    assert "index.faiss" in [
        f.path.split("/")[-1] for f in registry.client.list_artifacts(entry.run_id, "model")
    ]

    second = pipeline.train().version
    one, two = (pipeline.home / "candidates" / v / "model" for v in (published.version, second))
    # the same log, settings and seed: the same model, to the byte
    assert artifact.read_manifest(two).files == artifact.read_manifest(one).files
    again = pipeline.evaluate()
    assert again.champion == published.version
    assert again.against["champion"] == pytest.approx(evaluation.metrics, abs=0.1)
    refuse(pipeline)
    with pytest.raises(gate.Refused, match="worse"):
        pipeline.deploy()
    assert Trained.read(pipeline.home) == Trained(version=second, positions=report.positions)
    assert publish.champion(kafka) == published
    assert registry.get("champion") == entry


def test_a_run_that_breaks_leaves_the_champion_and_no_candidate(pipeline: Pipeline) -> None:
    def break_here(*_: object) -> None:
        raise KeyboardInterrupt

    pipeline.etl()
    with pytest.raises(KeyboardInterrupt):
        pipeline.train(early=break_here)
    assert publish.champion(pipeline.settings.kafka) is None
    with pytest.raises(workspace.MissingStep, match="pipeline train"):
        pipeline.evaluate()
    assert (
        Trained.read(pipeline.home) is None
    )  # there are tables, and what they hold still makes one due


def test_a_model_that_lost_most_items_is_no_candidate(pipeline: Pipeline) -> None:
    said: list[str] = []
    pipeline.progress = said.append
    pipeline.etl()
    champion(pipeline.settings, "large", a_model(1000))
    with pytest.raises(gate.Refused, match="items, the champion has 1,000"):
        pipeline.train()
    assert "training the two towers" not in said  # nor is time lost on it
    with pytest.raises(workspace.MissingStep, match="pipeline train"):
        pipeline.evaluate()
    trained = Trained.read(pipeline.home)
    assert trained is not None
    assert sum(trained.positions.values()) > 0


def test_one_training_at_a_time(settings: Settings) -> None:
    with (
        exclusive(settings.home, "`afterclick train`"),
        pytest.raises(AlreadyRunning, match="afterclick train"),
        exclusive(settings.home, "another"),
    ):
        pass
    with exclusive(settings.home, "another"):
        pass


def test_the_announced_model_is_the_champion_whatever_the_aliases_say(settings: Settings) -> None:
    registry = MlflowRegistry(settings)
    run = registry.start("test", {"rank": 1}, {})
    for version in ("v1", "v2"):
        folder = _artifact(settings, version)
        registry.register(folder, run, {})
        registry.follow(version)
    assert registry.get("champion").version == "v2"
    assert registry.get("previous").version == "v1"
    registry.follow("v1")
    assert registry.get("champion").version == "v1"
    assert registry.get("previous").version == "v2"


def _artifact(settings: Settings, version: str) -> Path:
    def fill(folder: Path) -> None:
        np.save(folder / "popularity.npy", np.ones(1))

    return artifact.write(settings.artifacts, version, fill, created="now", items=1)[0]


def test_a_tampered_artifact_is_not_loaded(settings: Settings) -> None:
    folder = _artifact(settings, "v1")
    (folder / "popularity.npy").write_bytes(b"something else")
    with pytest.raises(BadArtifact):
        models.load(folder)

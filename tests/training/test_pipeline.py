"""From a log to a served model: each step, the gate, the records in MLflow, interrupted runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterclick import artifact
from afterclick import model as models
from afterclick.errors import AlreadyRunning, BadArtifact
from afterclick.events import Item
from afterclick.settings import Settings
from afterclick.tree_ranker import FILE
from tests.scoring.examples import a_model
from tests.training import shop
from tests.training.challengers import add_champion, an_artifact
from training import gate, publish, workspace
from training.challenger import Evaluation
from training.mlflow_registry import MlflowRegistry
from training.pipeline import Pipeline
from training.workspace import LastTraining, training_lock

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(900)]


def refuse(pipeline: Pipeline) -> None:
    """Change the evaluation of the latest challenger to a refusal."""
    folder = workspace.latest(pipeline.home / "challengers", "")[1]
    refused = {"passed": False, "verdict": "refused", "reason": "worse"}
    Evaluation.read(folder).model_copy(update=refused).write(folder)


def test_a_log_becomes_a_served_model_and_a_refused_challenger_leaves_it(
    pipeline: Pipeline,
) -> None:
    """One test because each training takes half a minute: publish, record, compare, refuse."""
    kafka, artifacts = pipeline.settings.kafka, pipeline.settings.artifacts
    shop.write_log(pipeline.settings.archive, shop.drifting_events())
    titles = {
        "cold": "A thing without interactions",
        **{f"i{i}": f"Thing {i % 2}" for i in range(20)},
    }
    shop.publish_items(kafka, [Item(item_id=name, title=title) for name, title in titles.items()])
    with pytest.raises(workspace.MissingStep, match="pipeline etl"):
        pipeline.train()
    assert LastTraining.read(pipeline.home) is None
    report, evaluation, published = pipeline.run_all()
    assert LastTraining.read(pipeline.home) == LastTraining(
        version=published.version, positions=report.positions
    )
    assert report.balanced()
    assert evaluation.passed
    assert evaluation.metrics["live.hr@10"] > evaluation.against["trends"]["live.hr@10"]

    served, manifest = models.load(artifacts / published.version, published.manifest_sha256)
    assert {FILE, "index.faiss", "als_item_factors.npy", "content.npy"} <= set(manifest.files)
    assert served.words is not None
    assert len(served.words.words) > 0
    assert manifest.parameters["index"]["recall@100"] == 1.0
    assert manifest.lineage["positions"] == report.positions
    assert "cold" in served.index
    assert (artifacts / f"{published.version}-first").is_dir()  # the bootstrap model
    assert publish.champion(kafka) == published

    registry = MlflowRegistry(pipeline.settings)
    registered = registry.get("champion")
    run = registry.client.get_run(registered.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["rank"] == "8"
    assert run.data.metrics["live.ndcg_at_10"] == pytest.approx(evaluation.metrics["live.ndcg@10"])
    assert run.data.tags["positions"] == str(report.positions)
    files = registry.client.list_artifacts(registered.run_id, "model")
    assert "model/index.faiss" in [file.path for file in files]

    second = pipeline.train().version
    first_files, second_files = (
        artifact.read_manifest(pipeline.home / "challengers" / version / "model").files
        for version in (published.version, second)
    )
    assert first_files == second_files  # the same log, settings and seed: the same bytes
    again = pipeline.evaluate()
    assert again.champion == published.version
    assert again.against["champion"] == pytest.approx(evaluation.metrics, abs=0.1)
    refuse(pipeline)
    with pytest.raises(gate.Refused, match="worse"):
        pipeline.deploy()
    assert LastTraining.read(pipeline.home) == LastTraining(
        version=second, positions=report.positions
    )
    assert publish.champion(kafka) == published
    assert registry.get("champion") == registered


def test_an_interrupted_training_leaves_no_challenger(pipeline: Pipeline) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    shop.write_tables(pipeline.settings, shop.interactions(shop.every_pair(8, 8), 8, 8))
    with pytest.raises(KeyboardInterrupt):
        pipeline.train(on_first_model=interrupt)
    assert publish.champion(pipeline.settings.kafka) is None
    with pytest.raises(workspace.MissingStep, match="pipeline train"):
        pipeline.evaluate()
    assert LastTraining.read(pipeline.home) is None  # the events still make a training due


def test_a_model_with_too_few_items_is_refused_before_the_slow_parts(pipeline: Pipeline) -> None:
    lines: list[str] = []
    pipeline.progress = lines.append
    shop.write_tables(pipeline.settings, shop.interactions(shop.every_pair(8, 8), 8, 8))
    add_champion(pipeline.settings, "large", a_model(1000))
    with pytest.raises(gate.Refused, match="items, the champion has 1,000"):
        pipeline.train()
    assert "training the two towers" not in lines
    with pytest.raises(workspace.MissingStep, match="pipeline train"):
        pipeline.evaluate()
    last = LastTraining.read(pipeline.home)
    assert last is not None
    assert last.positions == {"reviews/0": 63}


def test_one_training_at_a_time(tmp_path: Path) -> None:
    with (
        training_lock(tmp_path, "`afterclick train`"),
        pytest.raises(AlreadyRunning, match="afterclick train"),
        training_lock(tmp_path, "another"),
    ):
        pass
    with training_lock(tmp_path, "another"):
        pass


def test_the_aliases_follow_the_published_model(settings: Settings) -> None:
    registry = MlflowRegistry(settings)
    run = registry.start("test", {"rank": 1}, {})
    for version in ("v1", "v2"):
        registry.register(an_artifact(settings.artifacts, version), run, {})
        registry.sync_aliases(version)
    assert registry.get("champion").version == "v2"
    assert registry.get("previous").version == "v1"
    registry.sync_aliases("v1")
    assert registry.get("champion").version == "v1"
    assert registry.get("previous").version == "v2"


def test_a_changed_artifact_is_not_loaded(tmp_path: Path) -> None:
    folder = an_artifact(tmp_path, "v1")
    (folder / "popularity.npy").write_bytes(b"something else")
    with pytest.raises(BadArtifact):
        models.load(folder)

"""The model registry: signature, aliases, differences, report, and storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import orjson
import pandas as pd
import pytest
from typer.testing import CliRunner

from afterclick.errors import BadArtifact
from afterclick.settings import Settings, TrainingSettings
from infra.cli import app
from tests.scoring.examples import a_model
from tests.scoring.test_sequence_encoder import an_encoder, some_towers
from tests.training.challengers import an_artifact
from training.challenger import Evaluation, RunMetadata, differences, write_report
from training.mlflow_registry import MlflowRegistry


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def made(settings: Settings, version: str, items: int, **manifest: Any) -> Path:
    values = {"parameters": {"rank": 8}, "metrics": {"live.hr@10": 0.5}, **manifest}
    return an_artifact(settings.artifacts, version, a_model(items), **values)


def test_a_run_has_the_model_s_signature_and_an_input_example(settings: Settings) -> None:
    registry = MlflowRegistry(settings)
    run_id = registry.start("v1", {}, {})
    registry.log_signature(run_id)
    mlflow.set_tracking_uri(settings.mlflow)
    info = mlflow.models.get_model_info(f"runs:/{run_id}/model")
    assert info.signature is not None
    assert info.signature.inputs.input_names() == ["items", "n"]
    assert info.signature.outputs.input_names() == ["item_id", "score"]
    example = Path(
        registry.client.download_artifacts(run_id, "model/input_example.json")
    ).read_bytes()
    assert set(orjson.loads(example)) == {"items", "n"}


def test_the_sequence_model_of_a_run_is_loaded_and_queried_by_mlflow(settings: Settings) -> None:
    towers = some_towers(an_encoder(), 6)
    model = a_model(6, towers=towers)
    where = settings.home / "challengers" / "v1"
    folder = an_artifact(where, "model", model, parameters=model.parameters())
    registry = MlflowRegistry(settings)
    run_id = registry.start("v1", {}, {})
    registry.files(run_id, folder)
    registry.log_signature(run_id)
    mlflow.set_tracking_uri(settings.mlflow)
    loaded = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    ids = model.item_ids.tolist()
    rows = pd.DataFrame({"items": [[ids[4], ids[1]], ["unknown"]], "n": [3, 3]})
    found = loaded.predict(rows)
    user = towers.user(np.array([4, 1], np.int32), np.ones(2, np.float32), np.zeros(2), 0.0)
    assert user is not None
    scores = np.where(towers.known, towers.targets @ user, -np.inf)
    scores[[4, 1]] = -np.inf
    best = np.argsort(-scores)[:3]
    assert found["item_id"].tolist() == [[ids[i] for i in best], []]
    np.testing.assert_allclose(found["score"][0], scores[best], rtol=1e-5)
    with pytest.raises(mlflow.exceptions.MlflowException, match="items"):
        loaded.predict(pd.DataFrame({"n": [3]}))


def test_two_models_are_compared(settings: Settings) -> None:
    one = made(settings, "v1", 6, lineage={"commit": "abc"})
    other = made(
        settings,
        "v2",
        8,
        parameters={"rank": 16},
        metrics={"live.hr@10": 0.6, "live.mrr": 0.1},
        lineage={},
    )
    found = differences(one, other)
    assert found["parameters"] == {"rank": [8, 16]}
    assert found["metrics"]["live.hr@10"] == {"first": 0.5, "second": 0.6, "change": 0.1}
    assert found["metrics"]["live.mrr"]["change"] is None
    assert found["lineage"] == {"commit": ["abc", None]}
    assert found["items"] == {"both": 6, "only_first": 0, "only_second": 2}


def test_a_damaged_model_is_not_compared(settings: Settings) -> None:
    one, other = made(settings, "v1", 6), made(settings, "v2", 6)
    np.save(other / "popularity.npy", np.zeros(3))
    with pytest.raises(BadArtifact, match="popularity"):
        differences(one, other)


def test_the_command_takes_versions_and_aliases(
    settings: Settings, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTERCLICK_KAFKA__BOOTSTRAP", broker)
    monkeypatch.setenv("AFTERCLICK_KAFKA__PREFIX", "nothing-announced-")
    registry = MlflowRegistry(settings)
    run_id = registry.start("test", {}, {})
    for version, rank in (("v1", 8), ("v2", 16)):
        registry.register(made(settings, version, 6, parameters={"rank": rank}), run_id, {})
    monkeypatch.setenv("AFTERCLICK_HOME", str(settings.home))
    done = CliRunner().invoke(
        app, ["models", "diff", "v1", "challenger", "--json"], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert orjson.loads(done.stdout.splitlines()[-1])["parameters"] == {"rank": [8, 16]}
    shown = CliRunner().invoke(app, ["models", "diff", "v1", "v2"], catch_exceptions=False)
    assert "rank" in shown.stdout


def test_the_report_shows_the_decision_and_the_champion_s_metrics(tmp_path: Path) -> None:
    run = RunMetadata(
        version="v9", cut_ms=0, parameters={"rank": 8}, lineage={"rows": 5}, seconds={"model": 2.0}
    )
    evaluation = Evaluation(
        questions=100,
        metrics={"live.hr@10": 0.25, "live.ndcg@10": 0.125},
        against={"champion": {"live.hr@10": 0.5}},
        champion="v8",
        passed=False,
        verdict="refused",
        reason="worse than the champion",
    )
    path = write_report(tmp_path / "report", run, evaluation)
    text = path.read_text()
    assert "**Refused**: worse than the champion." in text
    assert "| live.hr@10 | 0.2500 | 0.5000 |" in text
    assert (path.parent / "comparison.png").stat().st_size > 1000


def test_runs_and_models_can_be_stored_in_postgres(settings: Settings, postgres_url: str) -> None:
    there = settings.model_copy(
        update={"training": settings.training.model_copy(update={"mlflow_uri": postgres_url})}
    )
    folder = made(settings, "v1", 6)
    registry = MlflowRegistry(there)
    run_id = registry.start("v1", {"rank": 8}, {"data": "hash"})
    registry.metrics(run_id, {"live.ndcg@10": 0.5})
    registry.register(folder, run_id, {"data": "hash"})
    registry.sync_aliases("v1")
    registry.finish(run_id)
    again = MlflowRegistry(there).find("v1")
    assert again is not None
    assert (again.aliases, again.run_id, again.tags["data"]) == (("champion",), run_id, "hash")
    assert not (settings.home / "mlflow.db").exists()


def test_files_of_runs_can_be_stored_on_s3(settings: Settings, s3: Any, tmp_path: Path) -> None:
    where = settings.training.model_copy(update={"mlflow_files": "s3://shop/runs"})
    registry = MlflowRegistry(settings.model_copy(update={"training": where}))
    run_id = registry.start("v1", {}, {})
    registry.log_signature(run_id)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.md").write_text("the report")
    registry.files(run_id, tmp_path / "report")
    kept = {found["Key"] for found in s3.list_objects_v2(Bucket="shop")["Contents"]}
    assert f"runs/{run_id}/artifacts/report/report.md" in kept
    assert f"runs/{run_id}/artifacts/model/MLmodel" in kept
    assert not (settings.home / "mlflow").exists()
    (tmp_path / "read").mkdir()
    read = registry.client.download_artifacts(run_id, "report/report.md", str(tmp_path / "read"))
    assert Path(read).read_text() == "the report"


@pytest.mark.parametrize(
    ("uri", "files", "expected"),
    [
        (None, "s3://bucket/prefix", "s3://bucket/prefix"),
        (None, "/data/runs", "file:///data/runs"),
        ("http://mlflow:5000", None, None),
        ("http://mlflow:5000", "", None),
        (None, "mlflow-artifacts:/runs", "mlflow-artifacts:/runs"),
        ("http://mlflow:5000", "s3://bucket", "s3://bucket"),
    ],
)
def test_the_location_of_the_files_of_runs(
    uri: str | None, files: str | None, expected: str | None
) -> None:
    settings = Settings(training=TrainingSettings(mlflow_uri=uri, mlflow_files=files))
    assert settings.mlflow_files == expected

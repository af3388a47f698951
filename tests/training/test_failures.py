"""A training that fails leaves a run in MLflow that says where and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.entities import Run
from structlog.testing import capture_logs

from afterclick.errors import Unavailable
from afterclick.settings import KafkaSettings, Settings
from tests.training.candidates import candidate
from training import failures, gate, publish
from training.mlflow_registry import MlflowRegistry
from training.pipeline import Pipeline
from training.workspace import MissingStep


def runs(settings: Settings) -> list[Run]:
    registry = MlflowRegistry(settings)
    return list(registry.client.search_runs([registry.experiment()]))


def fail(settings: Settings, error: Exception) -> None:
    """A step that ends so."""
    with pytest.raises(type(error)), failures.recorded(settings, "train"):
        raise error


def test_a_step_that_fails_is_a_failed_run(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    before = failures.now_ms()
    fail(settings, ValueError("no interactions"))
    (run,) = runs(settings)
    assert run.info.status == "FAILED"
    assert (run.data.tags["step"], run.data.tags["reason"]) == (
        "train",
        "ValueError: no interactions",
    )
    assert run.data.params["rank"] == "64"
    assert before <= run.info.start_time <= run.info.end_time


def test_the_run_is_as_long_as_the_step_was(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    failures.record(settings, "train", "took longer", failures.now_ms() - 90_000)
    (run,) = runs(settings)
    assert run.info.end_time - run.info.start_time >= 90_000


def test_a_step_without_the_one_before_it_is_no_training(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    fail(settings, MissingStep("run `afterclick pipeline etl` first"))
    assert runs(settings) == []


def test_without_mlflow_the_failure_is_told_in_the_log_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    home = Settings(home=tmp_path)
    away = home.training.model_copy(update={"mlflow_uri": "http://127.0.0.1:1"})
    with capture_logs() as said:
        fail(home.model_copy(update={"training": away}), ValueError("no interactions"))
    (line,) = said
    assert line["event"] == "MLflow took no record of a failed training"
    assert (line["step"], line["reason"]) == ("train", "ValueError: no interactions")


def test_a_candidate_s_own_run_says_that_it_was_refused(settings: Settings) -> None:
    candidate(settings, "v1", passed=False, reason="worse than the champion")
    with pytest.raises(gate.Refused):
        Pipeline(settings).deploy()
    (run,) = runs(settings)
    assert run.info.status == "FAILED"
    assert run.data.tags["step"] == "deploy"
    assert "worse than the champion" in run.data.tags["reason"]


def test_a_deploy_that_goes_well_at_last_is_a_run_that_went_well(settings: Settings) -> None:
    candidate(settings, "v1")
    away = settings.model_copy(update={"kafka": KafkaSettings(bootstrap="127.0.0.1:1")})
    with pytest.raises(Unavailable):
        Pipeline(away).deploy()
    (run,) = runs(settings)
    assert (run.info.status, run.data.tags["step"]) == ("FAILED", "deploy")
    Pipeline(settings).deploy()
    (run,) = runs(settings)
    assert run.info.status == "FINISHED"
    assert not {"step", "reason"} & set(run.data.tags)
    assert publish.champion(settings.kafka) is not None

"""A failed training is a failed run in MLflow, with step and reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.entities import Run
from structlog.testing import capture_logs

from afterclick.errors import Unavailable
from afterclick.settings import KafkaSettings, Settings
from tests.training.challengers import add_challenger
from training import gate, publish
from training.mlflow_registry import MlflowRegistry, now_ms, record_failure, recorded
from training.pipeline import Pipeline
from training.workspace import MissingStep


def runs(settings: Settings) -> list[Run]:
    registry = MlflowRegistry(settings)
    return list(registry.client.search_runs([registry.experiment()]))


def fail(settings: Settings, error: Exception) -> None:
    """Run a step that raises this error."""
    with pytest.raises(type(error)), recorded(settings, "train"):
        raise error


def test_a_step_that_fails_is_a_failed_run(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    before = now_ms()
    fail(settings, ValueError("no interactions"))
    (run,) = runs(settings)
    assert run.info.status == "FAILED"
    assert (run.data.tags["step"], run.data.tags["reason"]) == (
        "train",
        "ValueError: no interactions",
    )
    assert run.data.params["rank"] == "64"
    assert before <= run.info.start_time <= run.info.end_time


def test_a_failed_run_has_the_duration_of_the_step(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    record_failure(settings, "train", "took longer", now_ms() - 90_000)
    (run,) = runs(settings)
    assert run.info.end_time - run.info.start_time >= 90_000


def test_a_missing_earlier_step_is_not_recorded(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    fail(settings, MissingStep("run `afterclick pipeline etl` first"))
    assert runs(settings) == []


def test_without_mlflow_the_failure_is_logged_and_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    home = Settings(home=tmp_path)
    down = home.training.model_copy(update={"mlflow_uri": "http://127.0.0.1:1"})
    with capture_logs() as lines:
        fail(home.model_copy(update={"training": down}), ValueError("no interactions"))
    (line,) = lines
    assert line["event"] == "cannot record a failed training in MLflow"
    assert (line["step"], line["reason"]) == ("train", "ValueError: no interactions")


def test_a_refused_challenger_s_run_is_failed_with_the_reason(settings: Settings) -> None:
    reason = "worse than the champion"
    add_challenger(settings, "v1", passed=False, verdict="refused", reason=reason)
    with pytest.raises(gate.Refused):
        Pipeline(settings).deploy()
    (run,) = runs(settings)
    assert run.info.status == "FAILED"
    assert run.data.tags["step"] == "deploy"
    assert "worse than the champion" in run.data.tags["reason"]


def test_a_repeated_deploy_that_succeeds_finishes_the_failed_run(settings: Settings) -> None:
    add_challenger(settings, "v1")
    down = settings.model_copy(update={"kafka": KafkaSettings(bootstrap="127.0.0.1:1")})
    with pytest.raises(Unavailable):
        Pipeline(down).deploy()
    (run,) = runs(settings)
    assert (run.info.status, run.data.tags["step"]) == ("FAILED", "deploy")
    Pipeline(settings).deploy()
    (run,) = runs(settings)
    assert run.info.status == "FINISHED"
    assert not {"step", "reason"} & set(run.data.tags)
    assert publish.champion(settings.kafka) is not None

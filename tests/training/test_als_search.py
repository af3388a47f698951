"""The search for ALS parameters resumes where it stopped, and records every trial in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from afterclick.settings import Settings, TrainingSettings
from tests.training.test_evaluation_reports import a_dataset
from training.config import AlsConfig
from training.evaluation.als_search import AlsEvaluation, AlsSearch, compare_engines, search
from training.evaluation.time_split import split_of
from training.mlflow_registry import MlflowRegistry

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", training=TrainingSettings(rank=16, iterations=6))


@pytest.fixture
def evaluation(tmp_path: Path, settings: Settings) -> AlsEvaluation:
    return AlsEvaluation.of(split_of(settings, a_dataset(tmp_path), None)[0], 60, 1)


def test_every_trial_is_a_nested_run_with_its_metrics(
    settings: Settings, evaluation: AlsEvaluation
) -> None:
    answer = search(settings, evaluation, AlsSearch(trials=3))
    assert answer["trials"] == 3
    assert_preference(answer)
    registry = MlflowRegistry(settings)
    runs = registry.client.search_runs(
        [registry.experiment()], f"tags.mlflow.parentRunId = '{answer['run']}'"
    )
    assert len(runs) == 3
    finished = [run for run in runs if run.info.status == "FINISHED"]
    assert len(finished) == 3 - answer["pruned"] >= 1
    for run in finished:
        assert {"rank", "reg", "alpha"} <= set(run.data.params)
        assert {"rmse", "live.precision_at_10", "ndcg_at_10"} <= set(run.data.metrics)
    best = max(run.data.metrics["ndcg_at_10"] for run in finished)
    assert registry.client.get_run(answer["run"]).data.metrics["best.ndcg_at_10"] == pytest.approx(
        best
    )


def assert_preference(answer: dict[str, Any]) -> None:
    """The best settings are preferred if they beat the current ones by more than the seed does."""
    scores = answer["current_seed_scores"]
    assert len(set(scores)) == 3, "each seed gives another model"
    assert answer["margin"] == pytest.approx(2 * np.std(scores, ddof=1))
    best = answer["best"]["metrics"]["ndcg@10"]
    assert answer["preferred"] is bool(best > np.mean(scores) + answer["margin"])


def test_a_killed_search_resumes(settings: Settings, evaluation: AlsEvaluation) -> None:
    first = search(settings, evaluation, AlsSearch(trials=1))
    study = optuna.load_study(study_name="als", storage=f"sqlite:///{settings.home / 'optuna.db'}")
    study.ask()  # a trial that never finishes
    again = search(settings, evaluation, AlsSearch(trials=4))
    assert (again["run"], again["trials"], again["failed"]) == (first["run"], 4, 1)
    assert not study.get_trials(states=(TrialState.RUNNING,))
    assert (
        search(settings, evaluation, AlsSearch(trials=4))["trials"] == 4
    )  # every trial is complete


def test_the_current_parameters_are_tried_first(
    settings: Settings, evaluation: AlsEvaluation
) -> None:
    search(settings, evaluation, AlsSearch(trials=1))
    study = optuna.load_study(study_name="als", storage=f"sqlite:///{settings.home / 'optuna.db'}")
    knobs = settings.training
    assert study.trials[0].params == {"rank": knobs.rank, "reg": knobs.reg, "alpha": knobs.alpha}


def test_a_trial_far_behind_the_others_is_pruned(
    settings: Settings, evaluation: AlsEvaluation
) -> None:
    study = optuna.create_study(
        study_name="als", storage=f"sqlite:///{_database(settings)}", direction="maximize"
    )
    study.set_user_attr("run", MlflowRegistry(settings).start("search", {}, {}))
    for _ in range(5):  # five trials with an impossible score
        trial = study.ask()
        trial.report(2.0, 2)
        study.tell(trial, 2.0)
    reported: list[tuple[int, str]] = []
    answer = search(settings, evaluation, AlsSearch(trials=7), lambda *line: reported.append(line))
    assert answer["preferred"], "an impossible score is beyond every seed"
    assert answer["pruned"] == 2
    assert [(done, line.split(":")[1].split(" (")[0]) for done, line in reported] == [
        (6, " pruned"),
        (7, " pruned"),
    ]
    registry = MlflowRegistry(settings)
    runs = registry.client.search_runs([registry.experiment()], "attributes.status = 'KILLED'")
    assert len(runs) == 2
    assert all({"rmse", "ndcg_at_10"} <= set(run.data.metrics) for run in runs), "how far they came"


def _database(settings: Settings) -> Path:
    settings.home.mkdir(parents=True)
    return settings.home / "optuna.db"


@pytest.mark.spark
def test_both_engines_are_evaluated_on_the_same_queries(
    spark: SparkSession, evaluation: AlsEvaluation
) -> None:
    answer = compare_engines(
        spark, evaluation, AlsConfig(rank=8, reg=0.1, alpha=10.0, iterations=8)
    )
    spark_s, implicit = answer["engines"]["spark"], answer["engines"]["implicit"]
    assert spark_s["fit_seconds"] > 0 < implicit["fit_seconds"]
    assert spark_s["live.hr@10"] == pytest.approx(implicit["live.hr@10"], abs=0.15)
    assert answer["params"]["rank"] == 8

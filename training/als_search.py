"""A search for ALS's rank, regParam and alpha on a past time window, by Optuna, recorded in MLflow.

reads   a dataset (training/evaluation/reviews.py), or parquet <home>/etl/<version>
writes  sqlite  <home>/optuna.db: the study, which a later call of the same name goes on with
        mlflow  a run for the study, in it a nested run per trial with its settings and metrics

A trial is pruned where, after a few passes, it is behind the median of the trials before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna

from afterclick.settings import Settings
from training import implicit_als
from training.als import AlsConfig, Factors
from training.als_quality import Exam
from training.mlflow_registry import MlflowRegistry

AIM = "ndcg@10"
Progress = Callable[[int, str], None]
"""Is told how many trials have ended, and how the newest did."""


@dataclass(frozen=True)
class Search:
    """What to look for, and for how long."""

    name: str = "als"
    """The study's name: the same name goes on."""
    trials: int = 20
    """Trials in all, those of earlier calls included."""
    seconds: float = 900.0
    """No trial starts after it."""
    looks: tuple[int, ...] = (2, 5)
    """Passes after which a trial may be pruned."""


def run(
    settings: Settings, exam: Exam, search: Search, progress: Progress = lambda _, __: None
) -> dict[str, Any]:
    """Search; returns the best settings and metrics, and how many trials there are."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings.home.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=search.name,
        storage=f"sqlite:///{settings.home / 'optuna.db'}",
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=settings.training.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )
    _forget_unfinished(study)
    registry = MlflowRegistry(settings)
    if not study.trials:
        _enqueue(study, settings)
        parent = registry.start(f"search {search.name}", {"aim": AIM}, {"kind": "search"})
        study.set_user_attr("run", parent)
    trials = _Trials(settings, exam, search, registry, study.user_attrs["run"], progress)
    left = search.trials - len(study.trials) + _waiting(study)
    if left > 0:
        study.optimize(trials, n_trials=left, timeout=search.seconds)
    registry.metrics(trials.parent, {f"best.{AIM}": study.best_value})
    registry.finish(trials.parent)
    return _answer(study)


@dataclass(frozen=True)
class _Trials:
    """The objective: fit, look at it on the way, measure, record."""

    settings: Settings
    exam: Exam
    search: Search
    registry: MlflowRegistry
    parent: str
    progress: Progress

    def __call__(self, trial: optuna.Trial) -> float:
        config = self._suggest(trial)
        knobs = {
            "rank": config.rank,
            "reg": config.reg,
            "alpha": config.alpha,
            "passes": config.iterations,
        }
        tags = {"mlflow.parentRunId": self.parent, "kind": "trial"}
        run_id = self.registry.start(f"trial {trial.number}", knobs, tags)
        try:
            measured = self._fit(trial, config, run_id)
        except optuna.TrialPruned:
            self.registry.finish(run_id, "KILLED", reason="pruned")
            self.progress(trial.number + 1, f"trial {trial.number}: pruned ({_shown(knobs)})")
            raise
        except BaseException as error:
            self.registry.finish(run_id, "FAILED", reason=repr(error))
            raise
        self.registry.metrics(run_id, measured)
        self.registry.finish(run_id)
        trial.set_user_attr("metrics", measured)
        self.progress(
            trial.number + 1, f"trial {trial.number}: {AIM} {measured[AIM]:.4f} ({_shown(knobs)})"
        )
        return measured[AIM]

    def _suggest(self, trial: optuna.Trial) -> AlsConfig:
        return AlsConfig(
            rank=trial.suggest_categorical("rank", [16, 32, 64, 128]),
            reg=trial.suggest_float("reg", 0.03, 20.0, log=True),
            alpha=trial.suggest_float("alpha", 0.5, 60.0, log=True),
            iterations=self.settings.training.iterations,
            seed=self.settings.training.seed,
        )

    def _fit(self, trial: optuna.Trial, config: AlsConfig, run_id: str) -> dict[str, float]:
        def watch(done: int, factors: Factors) -> None:
            if done in self.search.looks and done < config.iterations:
                measured = self.exam.metrics(factors, config)
                trial.report(measured[AIM], done)
                if trial.should_prune():
                    self.registry.metrics(run_id, measured)
                    raise optuna.TrialPruned

        return self.exam.metrics(implicit_als.fit(self.exam.known, config, watch), config)


def _enqueue(study: optuna.Study, settings: Settings) -> None:
    """What is used today is tried first."""
    knobs = settings.training
    if knobs.rank in (16, 32, 64, 128):
        study.enqueue_trial({"rank": knobs.rank, "reg": knobs.reg, "alpha": knobs.alpha})


def _forget_unfinished(study: optuna.Study) -> None:
    """A killed search leaves a trial that seems to run: it has failed."""
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _waiting(study: optuna.Study) -> int:
    return len(study.get_trials(states=(optuna.trial.TrialState.WAITING,)))


def _answer(study: optuna.Study) -> dict[str, Any]:
    states = [trial.state.name for trial in study.trials]
    best = study.best_trial
    return {
        "study": study.study_name,
        "trials": len(states),
        "pruned": states.count("PRUNED"),
        "failed": states.count("FAIL"),
        "best": {
            "trial": best.number,
            "params": best.params,
            "metrics": best.user_attrs.get("metrics", {}),
        },
        "run": study.user_attrs["run"],
    }


def _shown(knobs: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in knobs.items())

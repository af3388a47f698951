"""The quality of ALS on a time split: a search for rank, regParam and alpha, and a comparison of
the engines.

reads   a dataset (training/evaluation/reviews.py), or parquet <home>/etl/<version>
writes  sqlite  <home>/optuna.db: the study, which a later call of the same name continues
        mlflow  a run for the study, in it a nested run per trial with its settings and metrics

A trial is pruned if, after a few passes, it is behind the median of the trials before it. The best
settings are preferred to the current ones if they beat their mean over three seeds by two standard
deviations.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from afterclick.arrays import Float64Array, FloatArray, IntArray
from afterclick.model import Model
from afterclick.settings import Settings
from training.config import AlsConfig, ModelConfig
from training.evaluation import list_metrics, scorers
from training.evaluation.measure import FullRanking, answer
from training.interactions import Interactions
from training.mlflow_registry import MlflowRegistry
from training.models.als import Factors, implicit_als, spark_als
from training.models.popularity import first_seen, popularity
from training.protocols import EvaluationSplit, Queries, queries, sample

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PROTOCOLS = ("returning", "live")
OBJECTIVE = "ndcg@10"
_SPREAD_SEEDS = 3
_SPREADS = 2.0
ReportTrial = Callable[[int, str], None]
"""Receives the number of finished trials and a line about the newest one."""


@dataclass(frozen=True)
class AlsEvaluation:
    """The same queries for every setting and engine: full ranking, and RMSE of the preferences."""

    split: EvaluationSplit
    known: Interactions
    """The rows that are fitted: users with two interactions or more, items that are ranked."""
    queries: dict[str, Queries]
    seed: int

    @classmethod
    def of(cls, split: EvaluationSplit, max_queries: int, seed: int) -> AlsEvaluation:
        """At most `max_queries` queries of each protocol."""
        known = split.train.where(split.eligible[split.train.item])
        known = known.where(known.user_counts()[known.user] >= 2)
        chosen = {p: sample(queries(split, p), max_queries, seed) for p in PROTOCOLS}
        return cls(split, known, chosen, seed)

    def metrics(self, factors: Factors, config: AlsConfig) -> dict[str, float]:
        """protocol.metric → mean over users; `ndcg@10`: that of both protocols; `rmse`: of
        preferences."""
        scorer = scorers.als(als_model(self.split.train, factors, config))
        found = {"rmse": self._rmse(factors)}
        for protocol, chosen in self.queries.items():
            ranking = {"als": FullRanking(scorer, self.split.eligible, self.seed)}
            hits, relevant = answer(self.split.log, chosen, ranking).hits("als")
            found[f"{protocol}.ndcg@10"] = _mean(list_metrics.ndcg(hits, relevant, 10))
            found[f"{protocol}.ndcg@20"] = _mean(list_metrics.ndcg(hits, relevant, 20))
            found[f"{protocol}.precision@10"] = _mean(list_metrics.precision(hits, relevant, 10))
            found[f"{protocol}.hr@10"] = _mean(list_metrics.hit_rate(hits, relevant, 10))
        return {**found, OBJECTIVE: float(np.mean([found[f"{p}.ndcg@10"] for p in PROTOCOLS]))}

    def _rmse(self, factors: Factors) -> float:
        """Of the predicted preference for the targets, against 1 (Hu, Koren, Volinsky, eq. 2)."""
        returning = self.queries["returning"]
        predicted = (factors.users[returning.user] * factors.items[returning.first_target]).sum(
            axis=1
        )
        return float(np.sqrt(np.mean((1.0 - predicted) ** 2))) if len(returning) else 0.0


def als_model(
    rows: Interactions,
    factors: Factors,
    config: AlsConfig,
    neighbours: tuple[IntArray, FloatArray] | None = None,
) -> Model:
    """A model of ALS, popularity and the neighbours given (default: none)."""
    n = len(rows.item_ids)
    empty = np.full((n, 1), -1, np.int32), np.zeros((n, 1), np.float32)
    return Model(
        "als",
        rows.item_ids,
        popularity(rows),
        first_seen(rows),
        *(neighbours or empty),
        *empty,
        factors.items,
        als_alpha=config.alpha,
        als_reg=config.reg,
    )


def compare_engines(
    spark: SparkSession,
    evaluation: AlsEvaluation,
    config: AlsConfig,
    report_progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Spark and `implicit` with equal settings on the same rows: `fit_seconds` and metrics per
    engine."""
    engines: dict[str, Callable[[], Factors]] = {
        "implicit": lambda: implicit_als(evaluation.known, config),
        "spark": lambda: spark_als(spark, evaluation.known, config),
    }
    found: dict[str, Any] = {}
    for name, fit in engines.items():
        report_progress(f"{name}: fitting")
        start = time.perf_counter()
        factors = fit()
        seconds = round(time.perf_counter() - start, 2)
        found[name] = {"fit_seconds": seconds, **evaluation.metrics(factors, config)}
        report_progress(f"{name}: {seconds} s, NDCG@10 {found[name][OBJECTIVE]:.4f}")
    known = evaluation.known
    users, items = (len(np.unique(column)) for column in (known.user, known.item))
    shape = {"users": users, "items": items, "interactions": len(known)}
    return {**shape, "params": vars(config), "engines": found}


@dataclass(frozen=True)
class AlsSearch:
    """Extent of a search."""

    name: str = "als"
    """The study's name: a later call with the same name continues it."""
    trials: int = 20
    """Trials in all, including those of earlier calls."""
    seconds: float = 900.0
    """No trial starts later."""
    prune_after: tuple[int, ...] = (2, 5)
    """Passes after which a trial may be pruned."""


def search(
    settings: Settings,
    evaluation: AlsEvaluation,
    extent: AlsSearch,
    report_trial: ReportTrial = lambda _, __: None,
) -> dict[str, Any]:
    """Search; returns the best settings and metrics, and the numbers of trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings.home.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=extent.name,
        storage=f"sqlite:///{settings.home / 'optuna.db'}",
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=settings.training.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )
    _fail_unfinished(study)
    registry = MlflowRegistry(settings)
    if not study.trials:
        _enqueue(study, settings)
        parent = registry.start(
            f"search {extent.name}", {"objective": OBJECTIVE}, {"kind": "search"}
        )
        study.set_user_attr("run", parent)
    objective = _Objective(
        settings, evaluation, extent, registry, study.user_attrs["run"], report_trial
    )
    remaining = extent.trials - len(study.trials) + _n_waiting(study)
    if remaining > 0:
        study.optimize(objective, n_trials=remaining, timeout=extent.seconds)
    registry.metrics(objective.parent, {f"best.{OBJECTIVE}": study.best_value})
    registry.finish(objective.parent)
    return _summary(study) | _preference(study, settings, evaluation)


def _preference(
    study: optuna.Study, settings: Settings, evaluation: AlsEvaluation
) -> dict[str, Any]:
    """Whether the best settings beat the current ones by more than the seed does."""
    current = ModelConfig.of(settings).als
    scores = study.user_attrs.get("current_seed_scores") or [
        evaluation.metrics(implicit_als(evaluation.known, config), config)[OBJECTIVE]
        for config in (replace(current, seed=current.seed + n) for n in range(_SPREAD_SEEDS))
    ]
    study.set_user_attr("current_seed_scores", scores)
    margin = float(_SPREADS * np.std(scores, ddof=1))
    preferred = study.best_value > np.mean(scores) + margin
    return {"current_seed_scores": scores, "margin": margin, "preferred": bool(preferred)}


@dataclass(frozen=True)
class _Objective:
    """One trial: fit, prune on the way, measure, record."""

    settings: Settings
    evaluation: AlsEvaluation
    extent: AlsSearch
    registry: MlflowRegistry
    parent: str
    report_trial: ReportTrial

    def __call__(self, trial: optuna.Trial) -> float:
        config = self._suggest(trial)
        chosen = {
            "rank": config.rank,
            "reg": config.reg,
            "alpha": config.alpha,
            "passes": config.iterations,
        }
        tags = {"mlflow.parentRunId": self.parent, "kind": "trial"}
        run_id = self.registry.start(f"trial {trial.number}", chosen, tags)
        try:
            measured = self._fit(trial, config, run_id)
        except optuna.TrialPruned:
            self.registry.finish(run_id, "KILLED", reason="pruned")
            self.report_trial(trial.number + 1, f"trial {trial.number}: pruned ({_listed(chosen)})")
            raise
        except BaseException as error:
            self.registry.finish(run_id, "FAILED", reason=repr(error))
            raise
        self.registry.metrics(run_id, measured)
        self.registry.finish(run_id)
        trial.set_user_attr("metrics", measured)
        self.report_trial(
            trial.number + 1,
            f"trial {trial.number}: {OBJECTIVE} {measured[OBJECTIVE]:.4f} ({_listed(chosen)})",
        )
        return measured[OBJECTIVE]

    def _suggest(self, trial: optuna.Trial) -> AlsConfig:
        return AlsConfig(
            rank=trial.suggest_categorical("rank", [16, 32, 64, 128]),
            reg=trial.suggest_float("reg", 0.03, 20.0, log=True),
            alpha=trial.suggest_float("alpha", 0.5, 60.0, log=True),
            iterations=self.settings.training.iterations,
            seed=self.settings.training.seed,
        )

    def _fit(self, trial: optuna.Trial, config: AlsConfig, run_id: str) -> dict[str, float]:
        def on_pass(done: int, factors: Factors) -> None:
            if done in self.extent.prune_after and done < config.iterations:
                measured = self.evaluation.metrics(factors, config)
                trial.report(measured[OBJECTIVE], done)
                if trial.should_prune():
                    self.registry.metrics(run_id, measured)
                    raise optuna.TrialPruned

        return self.evaluation.metrics(implicit_als(self.evaluation.known, config, on_pass), config)


def _enqueue(study: optuna.Study, settings: Settings) -> None:
    """Try the current settings first."""
    chosen = settings.training
    if chosen.rank in (16, 32, 64, 128):
        study.enqueue_trial({"rank": chosen.rank, "reg": chosen.reg, "alpha": chosen.alpha})


def _fail_unfinished(study: optuna.Study) -> None:
    """Mark trials that a killed search left running as failed."""
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _n_waiting(study: optuna.Study) -> int:
    return len(study.get_trials(states=(optuna.trial.TrialState.WAITING,)))


def _summary(study: optuna.Study) -> dict[str, Any]:
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


def _listed(chosen: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in chosen.items())


def _mean(values: Float64Array) -> float:
    return float(values.mean()) if len(values) else 0.0

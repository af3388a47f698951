"""`afterclick benchmark`: any model on a published split.

Fit, tune on the validation rows, rank every item, measure on the test rows. The test rows are used
once per seed, after the search. The measured model is fitted on the training rows alone; with
`refit`, or if the split has no validation rows of its own, on the rows of validation as well.

What is known of users at the test: with times, or if the validation rows were cut from the training
rows, both, and neither is ranked. Else the training rows alone, as in the published figures of such
splits, and validation items are ranked.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
from optuna import Trial

from training.evaluation.auto import AutoSearch
from training.evaluation.benchmark_models import (
    AUTO,
    EpochModel,
    MatrixModel,
    data_for,
    defaults,
    first_settings,
    make,
    observe,
    suggested,
    within_time,
)
from training.evaluation.published_split import PublishedSplit, RankingTask, load
from training.interactions import Interactions
from training.models.stopping import EarlyStopping

OBJECTIVE = "ndcg@20"
_BY_SEED = ("recall@20", "ndcg@10", "hr@10")
_MAX_USERS = 10_000
"""Maximum of users that one trial is measured on."""
_MAX_SCORES = 150_000_000
"""Maximum of scores that one trial computes, for 1,000 users at least."""
_SPREAD_SEEDS = 3
"""Seeds with which the defaults of a neural model are fitted, to know what a seed changes."""
_SPREADS = 2.0
"""Standard deviations over seeds by which other settings must beat the mean of the defaults."""
ReportProgress = Callable[[str], None]


@dataclass(frozen=True)
class BenchmarkRequest:
    """Options of the command line."""

    folder: Path
    model: str
    trials: int = 40
    seeds: int = 1
    seed: int = 42
    seconds: float = 360.0
    """For the search; after the first, no trial starts that might end later."""
    negatives: Path | None = None
    """Rank each test item among these alone (the NCF paper's leave-one-out). The search ranks in
    full."""
    refit: bool = False
    """Fit the measured model on the validation rows as well."""


def run(
    request: BenchmarkRequest, report_progress: ReportProgress = lambda _: None
) -> dict[str, Any]:
    """The figures of `afterclick benchmark --json`. Raises BadDataset."""
    split = load(request.folder, request.seed, request.negatives)
    users, items = split.shape
    report_progress(f"{users:,} users, {items:,} items, {len(split.train):,} training interactions")
    if request.model == AUTO:
        return _run_auto(split, request, report_progress)
    start = time.perf_counter()
    found = ModelSearch(split, request, report_progress).run()
    tuned = time.perf_counter() - start
    settings = found.settings
    if found.cut_off:  # half of the time left; the other half is for ranking on a machine as slow
        left = max(0.0, request.seconds - tuned) / 2
        settings = {**settings, "seconds": settings["seconds"] + left}

    def fitted(rows: Interactions, seed: int) -> MatrixModel:
        model = make(request.model, settings)
        if found.cut_off and rows is split.train:  # the number of epochs is unknown
            stopping = EarlyStopping(partial(validation_score, model, split, request))
            cast(EpochModel, model).fit(data_for(model, rows), seed, stopping)
        else:
            model.fit(data_for(model, rows), seed)
        return model

    figures = _measure(split, request, fitted, report_progress)
    return figures | {
        "trials": found.trials,
        "cut_off": found.cut_off,
        "default_seed_scores": list(found.seed_scores),
        "tune_seconds": round(tuned, 2),
        "params": settings,
    }


def _run_auto(
    split: PublishedSplit, request: BenchmarkRequest, report_progress: ReportProgress
) -> dict[str, Any]:
    start = time.perf_counter()

    def score(model: MatrixModel) -> float:
        return validation_score(model, split, request)

    users = min(_tuned_users(split), len(np.unique(split.valid.user)))
    search = AutoSearch(split, request.seconds, request.seed, score, report_progress, users)
    mixed = search.run()
    tuned = time.perf_counter() - start
    first = request.seed

    def fitted(rows: Interactions, seed: int) -> MatrixModel:
        if rows is not split.train or seed != first:  # else the search has fitted it
            mixed.fit(rows, seed)
        return mixed

    figures = _measure(split, request, fitted, report_progress)
    return figures | {
        "trials": len(search.tried),
        "tune_seconds": round(tuned, 2),
        "params": dict(zip(mixed.names, mixed.settings, strict=True)),
        "weights": mixed.weights,
        "norm": mixed.mixture.norm,
        "tried": [asdict(each) for each in search.tried],
    }


def _measure(
    split: PublishedSplit,
    request: BenchmarkRequest,
    fitted: Callable[[Interactions, int], MatrixModel],
    report_progress: ReportProgress,
) -> dict[str, Any]:
    """Metrics on the test rows, the mean over seeds, and what they were measured on."""
    rows = split.all_rows if split.inner or request.refit else split.train
    known = rows if request.refit else split.history
    measured, seconds = [], []
    for seed in range(request.seed, request.seed + request.seeds):
        start = time.perf_counter()
        model = fitted(rows, seed)
        observe(model, known)
        seconds.append(time.perf_counter() - start)
        task = RankingTask(known.matrix(), split.test, split.among, seed)
        measured.append(task.measure(model.scores))
        report_progress(f"seed {seed}: {OBJECTIVE} {measured[-1][OBJECTIVE]:.4f}")
    users, items = split.shape
    return {
        "model": request.model,
        "protocol": "full" if split.among is None else "ncf",
        **{name: float(np.mean([m[name] for m in measured])) for name in measured[0]},
        "per_seed": {name: [m[name] for m in measured] for name in (OBJECTIVE, *_BY_SEED)},
        "users": users,
        "items": items,
        "interactions": len(split.train),
        "timed": split.timed,
        "fitted_on": "train" if rows is split.train else "train and valid",
        "tuned_on": "rows cut from train" if split.inner else "valid",
        "fit_seconds": round(float(np.mean(seconds)), 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def validation_score(model: MatrixModel, split: PublishedSplit, request: BenchmarkRequest) -> float:
    """OBJECTIVE on the validation rows, of a limited number of users."""
    n_users = _tuned_users(split)
    seen, target = split.train.matrix(), split.valid.matrix()
    task = RankingTask(seen, target, seed=request.seed, max_users=n_users)
    return task.measure(model.scores)[OBJECTIVE]


def _tuned_users(split: PublishedSplit) -> int:
    """Users that OBJECTIVE is measured on, at most."""
    return min(_MAX_USERS, max(1000, _MAX_SCORES // split.shape[1]))


@dataclass(frozen=True)
class SearchResult:
    """The settings that a search chose."""

    settings: dict[str, Any]
    trials: int
    """Trials that finished."""
    cut_off: bool = False
    """The defaults did not converge in a trial's time. Then the settings are the defaults: the
    results of others in that time show how fast they learn, not how well."""
    seed_scores: tuple[float, ...] = ()
    """Validation scores of a neural model's defaults, one per seed; empty if no setting beat
    them."""


@dataclass(frozen=True)
class ModelSearch:
    """A search by Optuna on the validation rows. The first trial has the defaults."""

    split: PublishedSplit
    request: BenchmarkRequest
    report_progress: ReportProgress = lambda _: None
    make: Callable[[str, Mapping[str, Any]], MatrixModel] = make
    score: Callable[[MatrixModel, PublishedSplit, BenchmarkRequest], float] = validation_score

    def run(self) -> SearchResult:
        """The best settings; of a neural model the defaults, unless others beat them by more than
        the seed does."""
        request, default = self.request, defaults(self.request.model)
        if request.trials <= 0 or request.model == "popularity":
            return SearchResult(default, 0)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=request.seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for known in first_settings(request.model, default):
            study.enqueue_trial({**default, **known})
        study.optimize(
            self._objective,
            n_trials=request.trials,
            callbacks=[_within(request.seconds, _SPREAD_SEEDS - 1 if "epochs" in default else 0)],
        )
        best, seed_scores = study.best_trial, tuple[float, ...]()
        if "epochs" in default and best.number:
            seed_scores = self._seed_scores(study.trials[0].values[0])
            if best.values[0] <= np.mean(seed_scores) + _SPREADS * np.std(seed_scores, ddof=1):
                best = study.trials[0]
        finished = sum(trial.state.is_finished() for trial in study.trials)  # some are enqueued
        settings = {**default, **best.params, **best.user_attrs}
        cut_off = study.user_attrs.get("cut_off", False)
        return SearchResult(settings, finished, cut_off, seed_scores)

    def _seed_scores(self, first: float) -> tuple[float, ...]:
        """Validation scores of the defaults, one per seed; that of the search's seed is given."""
        request, default = self.request, defaults(self.request.model)
        scores = [first]
        for seed in range(request.seed + 1, request.seed + _SPREAD_SEEDS):
            model = cast(EpochModel, self.make(request.model, self._limited(default)))
            scores.append(self._fit(model, seed).best)
            self.report_progress(f"defaults with seed {seed}: {OBJECTIVE} {scores[-1]:.4f}")
        return tuple(scores)

    def _limited(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings with the time of one trial, where the model has a limit."""
        limit = {"seconds": self.request.seconds / 3} if "seconds" in settings else {}
        return {**settings, **limit}

    def _fit(self, model: EpochModel, seed: int) -> EarlyStopping:
        """Fit with early stopping on the validation rows."""
        stopping = EarlyStopping(lambda: self.score(model, self.split, self.request))
        model.fit(data_for(model, self.split.train), seed, stopping)
        return stopping

    def _objective(self, trial: Trial) -> float:
        request, start = self.request, time.perf_counter()
        default = defaults(request.model)
        wished = self._limited(default) | suggested(request.model, trial)
        settings = within_time(request.model, wished, self.split.shape[1], request.seconds / 3)
        for name in settings:
            if settings[name] != wished[name]:
                trial.set_user_attr(name, settings[name])
        model = self.make(request.model, settings)
        if "epochs" in default:
            value = self._fit_epochs(trial, cast(EpochModel, model), default["epochs"])
        else:
            model.fit(data_for(model, self.split.train), request.seed)
            value = self.score(model, self.split, request)
        shown = ", ".join(f"{k} {v:.3g}" for k, v in trial.params.items())
        self.report_progress(
            f"trial {trial.number}: {OBJECTIVE} {value:.4f} "
            f"in {time.perf_counter() - start:.1f}s ({shown})"
        )
        return value

    def _fit_epochs(self, trial: Trial, model: EpochModel, max_epochs: int) -> float:
        """The best score of any epoch. Ends the study if the defaults are cut off."""
        stopping = self._fit(model, self.request.seed)
        if not trial.number and stopping.cut_off(max_epochs):
            trial.study.set_user_attr("cut_off", True)
            trial.study.stop()
            self.report_progress("the defaults need more time than a trial has: no search")
        elif not stopping.rising:
            trial.set_user_attr("epochs", stopping.best_epochs)
        return stopping.best


def _within(
    seconds: float, reserved: int
) -> Callable[[optuna.Study, optuna.trial.FrozenTrial], None]:
    """Ends a search before a trial as long as the longest one, and `reserved` fits as long, would
    exceed the time."""
    start = time.monotonic()

    def callback(study: optuna.Study, _: optuna.trial.FrozenTrial) -> None:
        took = [t.duration.total_seconds() for t in study.trials if t.duration is not None]
        if time.monotonic() - start + (1 + reserved) * max(took) > seconds:
            study.stop()

    return callback

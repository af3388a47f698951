"""Fit, tune on the validation rows, rank everything, measure on the test rows.

The test rows are looked at once per seed, after the search; the model that is measured is fitted on the
training rows alone (and on the rows cut off for the search, where the split has no validation rows).
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna

from training.benchmark import registry
from training.benchmark.measure import measure
from training.benchmark.registry import EpochRecommender, Recommender
from training.benchmark.split import Split, load
from training.benchmark.watch import Watch

AIM = "ndcg@20"
_ASKED = 10_000
"""Most users that one trial is measured on,"""
_SCORED = 150_000_000
"""and most scores that it takes, 1,000 users at least."""
_MARGIN = 1.03
"""By how much other settings of a neural model have to beat the defaults: another seed changes as much."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    folder: Path
    model: str
    trials: int = 40
    seeds: int = 1
    seed: int = 42
    seconds: float = 360.0
    """For the search; no trial starts that might end later, the first excepted."""
    negatives: Path | None = None
    """Rank each test item among these alone (the NCF paper's leave-one-out). The search ranks in full."""


def run(request: Request, progress: Progress = lambda _: None) -> dict[str, Any]:
    """Everything that `afterclick benchmark --json` prints. Raises BadDataset."""
    split = load(request.folder, request.seed, request.negatives)
    users, items = split.shape
    progress(f"{users:,} users, {items:,} items, {split.train.nnz:,} training interactions")
    start = time.perf_counter()
    found = search(split, request, progress)
    tuned = time.perf_counter() - start
    knobs = found.knobs
    if found.cut_off:
        left = (
            max(0.0, request.seconds - tuned) / 2
        )  # the other half is for ranking on a machine as slow
        knobs = {**knobs, "seconds": knobs["seconds"] + left}
    train = (split.train + split.valid).tocsr() if split.inner else split.train
    measured, seconds = [], []
    for seed in range(request.seed, request.seed + request.seeds):
        start = time.perf_counter()
        model = registry.make(request.model, knobs)
        if found.cut_off and not split.inner:
            watch = Watch(_look(model, split, request))  # how many epochs it takes is not known
            cast(EpochRecommender, model).fit(train, seed, watch)
        else:
            model.fit(train, seed)
        seconds.append(time.perf_counter() - start)
        measured.append(measure(model.scores, train, split.test, seed, negatives=split.among))
        progress(f"seed {seed}: {AIM} {measured[-1][AIM]:.4f}")
    return {
        "model": request.model,
        "protocol": "full" if split.among is None else "ncf",
        **{name: float(np.mean([m[name] for m in measured])) for name in measured[0]},
        "per_seed": {AIM: [m[AIM] for m in measured]},
        "users": users,
        "items": items,
        "interactions": int(split.train.nnz),
        "tuned_on": "rows cut from train" if split.inner else "valid",
        "trials": found.trials,
        "cut_off": found.cut_off,
        "fit_seconds": round(float(np.mean(seconds)), 2),
        "tune_seconds": round(tuned, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "params": knobs,
    }


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    knobs: dict[str, Any]
    trials: int
    """How many were tried."""
    cut_off: bool = False
    """The defaults could not learn to the end in a trial's time. So the knobs are the defaults: what others
    reach in that time says how fast they learn, not how well."""


def search(split: Split, request: Request, progress: Progress) -> Found:
    """The best knobs on the validation rows. The first trial has the defaults.

    Of a neural model the defaults themselves, where they are within 3 % of the best or were cut off.
    """
    default = registry.defaults(request.model)
    if request.trials <= 0 or request.model == "popularity":
        return Found(default, 0)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=request.seed)
    )
    for known in registry.starts(request.model):
        study.enqueue_trial({**default, **known})

    def objective(trial: optuna.Trial) -> float:
        knobs = {**_limits(request, default), **registry.suggest(request.model, trial)}
        model = registry.make(request.model, knobs)
        start, look = time.perf_counter(), _look(model, split, request)
        if "epochs" in default:
            watch = Watch(look)
            cast(EpochRecommender, model).fit(split.train, request.seed, watch)
            if not trial.number and watch.cut_off(default["epochs"]):
                study.set_user_attr("cut_off", True)
                study.stop()
                progress(
                    "the defaults need more time than a trial has: no search, the time goes to the fit"
                )
            elif not watch.rising:
                trial.set_user_attr("epochs", watch.best_epochs)
            value = watch.best
        else:
            model.fit(split.train, request.seed)
            value = look()
        shown = ", ".join(f"{k} {v:.3g}" for k, v in trial.params.items())
        progress(
            f"trial {trial.number}: {AIM} {value:.4f} in {time.perf_counter() - start:.1f}s ({shown})"
        )
        return value

    study.optimize(objective, n_trials=request.trials, callbacks=[_in_time(request.seconds)])
    best = study.best_trial
    if "epochs" in default and best.values[0] < _MARGIN * study.trials[0].values[0]:
        best = study.trials[0]
    tried = sum(
        trial.state.is_finished() for trial in study.trials
    )  # others may wait to be started
    knobs = {**default, **best.params, **best.user_attrs}
    return Found(knobs, tried, study.user_attrs.get("cut_off", False))


def _look(model: Recommender, split: Split, request: Request) -> Callable[[], float]:
    """What the model is worth on the validation rows, of many users at most."""
    most = min(_ASKED, max(1000, _SCORED // split.shape[1]))
    return lambda: measure(model.scores, split.train, split.valid, request.seed, most)[AIM]


def _in_time(seconds: float) -> Callable[[optuna.Study, optuna.trial.FrozenTrial], None]:
    """Ends a search before a trial that might take as long as the longest one and be over too late."""
    start = time.monotonic()

    def look(study: optuna.Study, _: optuna.trial.FrozenTrial) -> None:
        took = [t.duration.total_seconds() for t in study.trials if t.duration is not None]
        if time.monotonic() - start + max(took) > seconds:
            study.stop()

    return look


def _limits(request: Request, default: dict[str, Any]) -> dict[str, Any]:
    """No single trial may take more than a third of the search."""
    return {"seconds": request.seconds / 3} if "seconds" in default else {}

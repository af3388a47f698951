"""`--model auto`: choose models, their settings and mixing weights on the validation rows.

Successive halving over the models of `afterclick benchmark`: each is fitted with its known settings
first. Then the models that are not clearly behind share the remaining time in rounds; from the
second round on the better half. Models that learn in epochs get a longer fit, the others more
settings. The best fit of every model is mixed with the others (see `mixing`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import optuna
from numpy.typing import NDArray

from afterclick.arrays import FloatArray
from training.evaluation.benchmark_models import (
    DETERMINISTIC,
    MODELS,
    EpochModel,
    MatrixModel,
    data_for,
    defaults,
    first_settings,
    make,
    observe,
    ranking_seconds,
    searchable,
    suggested,
    within_time,
)
from training.evaluation.mixing import Mixture, Validation, find_weights
from training.evaluation.published_split import PublishedSplit
from training.interactions import Interactions
from training.models.stopping import EarlyStopping

BEHIND = 0.6
"""Share of the best score below which a model gets no more time."""
_ROUNDS = 2
_FIRST, _MIXING = 0.4, 0.15
"""Shares of the time for the known settings of all models, and for the weights."""
_RANKINGS = 4
"""Rankings of the validation rows for which a model must have time."""
_TRIALS = 40
"""Maximum of settings of a model per round."""
_MAX_MIXED = 200_000_000
"""Maximum of scores per model that the weights are chosen with, for 1,000 users at least."""
_MAX_USERS = 10_000
_UNLIMITED_S = 86_400.0
Score = Callable[[MatrixModel], float]
ReportProgress = Callable[[str], None]


@dataclass
class Tried:
    """One fit of the search."""

    model: str
    settings: dict[str, Any]
    score: float | None
    """The objective on the validation rows; None without a fit."""
    seconds: float
    stopped_because: str


@dataclass(eq=False)
class Candidate:
    """A model in the search: its study and its best fit so far."""

    name: str
    study: optuna.Study
    best: MatrixModel | None = None
    score: float = -1.0
    settings: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    """The settings with the number of the best epoch."""
    cut_off: bool = False
    """The best fit was ended by its time limit."""
    longest: float = 0.0
    """Seconds of the longest fit."""


@dataclass
class MixedModel:
    """The models that a search chose, as one model."""

    names: tuple[str, ...]
    settings: tuple[dict[str, Any], ...]
    mixture: Mixture
    models: list[MatrixModel]
    fitted_on: Interactions
    sequential = True

    def fit(self, rows: Interactions, seed: int) -> None:
        """Fit the models again; on the same rows only those that depend on the seed."""
        for number, name in enumerate(self.names):
            if rows is not self.fitted_on or name not in DETERMINISTIC:
                self.models[number] = make(name, self.settings[number])
                self.models[number].fit(data_for(self.models[number], rows), seed)
        self.fitted_on = rows
        self.observe(rows)

    def observe(self, rows: Interactions) -> None:
        """Replace the histories that are scored."""
        for model in self.models:
            observe(model, rows)
        self._seen = rows.matrix()

    def scores(self, users: NDArray[np.intp]) -> FloatArray:
        """(b, n_items) the mixture."""
        found = [np.asarray(model.scores(users)) for model in self.models]
        return self.mixture.scores(found, self._seen[users])

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each model."""
        return dict(zip(self.names, self.mixture.weights, strict=True))


@dataclass
class AutoSearch:
    """The search of models, settings and weights within a time."""

    split: PublishedSplit
    seconds: float
    seed: int
    score: Score
    """The objective on the validation rows."""
    report_progress: ReportProgress = lambda _: None
    users: int = 10_000
    """Users that the objective is measured on, at most."""
    names: tuple[str, ...] = MODELS
    tried: list[Tried] = field(default_factory=list)
    """Every fit, after `run`."""

    def run(self) -> MixedModel:
        """The mixture of the best fits."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._start = time.perf_counter()
        candidates = [Candidate(name, self._study()) for name in self.names]
        for number, candidate in enumerate(candidates):
            left = _FIRST * self.seconds - self._elapsed()
            self._try_known(candidate, max(0.0, left) / (len(candidates) - number))
        running = [candidate for candidate in candidates if searchable(candidate.name)]
        for number in range(_ROUNDS):
            running = self._ahead(running, halve=number > 0)
            for place, candidate in enumerate(running):
                share = 1.0 / ((len(running) - place) + (_ROUNDS - 1 - number) * len(running))
                self._try_more(candidate, self._left() * share)
        return self._mixed([candidate for candidate in candidates if candidate.best is not None])

    def _study(self) -> optuna.Study:
        sampler = optuna.samplers.TPESampler(seed=self.seed, n_startup_trials=3)
        return optuna.create_study(direction="maximize", sampler=sampler)

    def _elapsed(self) -> float:
        return time.perf_counter() - self._start

    def _left(self) -> float:
        """Seconds until the weights are to be found."""
        return max(0.0, (1.0 - _MIXING) * self.seconds - self._elapsed())

    def _try_known(self, candidate: Candidate, seconds: float) -> None:
        """Fit with the known settings; more than the first only if the time allows."""
        start, default = time.perf_counter(), defaults(candidate.name)
        if ranking_seconds(candidate.name, self.users, self.split.shape[1]) > seconds / _RANKINGS:
            why = "ranking all items takes too long"
            self.tried.append(Tried(candidate.name, default, None, 0.0, why))
            return
        for number, known in enumerate(first_settings(candidate.name, default)):
            late = self._elapsed() > self.seconds and bool(self.tried)
            used = time.perf_counter() - start
            if late or (number and used + candidate.longest > seconds):
                self.tried.append(Tried(candidate.name, known, None, 0.0, "no time left"))
                break
            if searchable(candidate.name):
                candidate.study.enqueue_trial({**default, **known})
                self._try(candidate, seconds)
            else:
                self._fit(candidate, default, seconds)

    def _try_more(self, candidate: Candidate, seconds: float) -> None:
        """A longer fit if the clock ended the best one, and other settings."""
        start = time.perf_counter()
        if candidate.cut_off:
            if seconds > 1.3 * candidate.longest:
                self._fit(candidate, {**defaults(candidate.name), **candidate.settings}, seconds)
            return
        for _ in range(_TRIALS):
            left = seconds - (time.perf_counter() - start)
            if left < candidate.longest:
                return
            self._try(candidate, left)

    def _try(self, candidate: Candidate, seconds: float) -> None:
        """Fit with the next settings of the study."""
        trial = candidate.study.ask()
        settings = {**defaults(candidate.name), **suggested(candidate.name, trial)}
        candidate.study.tell(trial, self._fit(candidate, settings, seconds))

    def _fit(self, candidate: Candidate, settings: dict[str, Any], seconds: float) -> float:
        """Fit, keep the best one, and return the score on the validation rows."""
        start, name = time.perf_counter(), candidate.name
        settings = within_time(name, settings, self.split.shape[1], seconds)
        model, stopping = make(name, settings), None
        data = data_for(model, self.split.train)
        if "epochs" in settings:
            stopping = EarlyStopping(lambda: self.score(model))
            cast(EpochModel, model).fit(data, self.seed, stopping)
            value, why = stopping.best, "no more progress"
        else:
            model.fit(data, self.seed)
            value, why = self.score(model), "finished"
        cut_off = stopping is not None and stopping.cut_off(settings["epochs"])
        took = time.perf_counter() - start
        candidate.longest = max(candidate.longest, took)
        shown = {**settings, **({"epochs": stopping.best_epochs} if stopping else {})}
        if value > candidate.score:
            candidate.best, candidate.score, candidate.settings = model, value, settings
            candidate.cut_off = cut_off
            candidate.final = shown
        why = "time limit" if cut_off else why
        self.tried.append(Tried(name, shown, value, round(took, 2), why))
        self.report_progress(f"{name}: {value:.4f} in {took:.1f}s ({why})")
        return value

    def _ahead(self, running: Sequence[Candidate], halve: bool) -> list[Candidate]:
        """The candidates that get more time; the last fit of the others says why not."""
        ordered = sorted(running, key=lambda candidate: -candidate.score)
        best = ordered[0].score if ordered else 0.0
        ahead = [c for c in ordered if c.best is not None and c.score >= BEHIND * best]
        kept = ahead[: -(-len(ahead) // 2)] if halve else ahead
        for tried in self.tried:
            dropped = next((c for c in running if c not in kept and c.name == tried.model), None)
            if dropped is not None and tried.score == dropped.score:
                why = "in the worse half" if dropped in ahead else "clearly behind"
                tried.stopped_because += f"; {why}: no more time"
        return kept

    def _mixed(self, found: list[Candidate]) -> MixedModel:
        split = self.split
        seen, target = split.train.matrix(), split.valid.matrix()
        users = np.flatnonzero(np.diff(target.indptr))
        count = min(_MAX_USERS, max(1000, _MAX_MIXED // split.shape[1]))
        if len(users) > count:
            users = np.sort(np.random.default_rng(self.seed).choice(users, count, replace=False))
        models = [cast(MatrixModel, candidate.best) for candidate in found]
        validation = Validation.of([model.scores for model in models], users, seen, target)
        mixture = find_weights(validation, self.report_progress)
        used = [number for number, weight in enumerate(mixture.weights) if weight]
        mixture = Mixture(
            mixture.norm,
            tuple(mixture.weights[number] for number in used),
            tuple(mixture.scales[number] for number in used),
        )
        names = tuple(found[number].name for number in used)
        settings = tuple(_unlimited(found[number].final) for number in used)
        mixed = MixedModel(names, settings, mixture, [models[n] for n in used], split.train)
        shown = ", ".join(f"{name} {weight:.2f}" for name, weight in mixed.weights.items())
        self.report_progress(f"mixture by {mixture.norm}: {shown}")
        return mixed


def _unlimited(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a fit that ends after its epochs, not by the clock."""
    return {**settings, "seconds": _UNLIMITED_S} if "epochs" in settings else settings

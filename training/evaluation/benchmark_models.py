"""The models of `afterclick benchmark` by name: their settings, those to try first, and what a
search may change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna import Trial

from afterclick.errors import BadInput
from training.interactions import Interactions
from training.models.als import NumpyAls
from training.models.item_item import PLAIN_FROM, ItemItem, Popularity
from training.models.stopping import EarlyStopping
from training.models.transition_graph import TransitionModel

MODELS = ("popularity", "transitions", "als", "item_item", "sequence", "two_tower", "ncf")
"""In the order in which `auto` tries them: the cheap ones first."""
DETERMINISTIC = ("popularity", "item_item", "transitions")
"""Models that do not depend on the seed, or hardly."""
AUTO = "auto"
"""Chooses among MODELS, and mixes them."""
_SOLVED_PER_S, _NEIGHBOURHOODS_PER_S = 2e10, 500.0
"""Cubed items of a dense solve, and sparse solves of items, per second of one slow core."""
_RANKED_PER_S = {"ncf": 2e6}
"""Pairs of user and item that a model scores per second of one slow core, where that is slow."""
_DENSE = 3000
"""Catalogues up to this size always get the dense solve."""


class MatrixModel(Protocol):
    """A model of a published split: users and items by index.

    A model with an attribute `sequential` that is true learns from Interactions with times, the
    others from a CSR of ones. `observe(train)`, if it has that, takes newer histories without
    another fit.
    """

    def fit(self, train: Any, seed: int) -> None:
        """Learn from a CSR of ones (n_users, n_items), or from Interactions."""
        ...

    def scores(self, users: NDArray[np.intp]) -> NDArray[np.float32]:
        """(b, n_items) higher is better."""
        ...


class EpochModel(MatrixModel, Protocol):
    """A model that learns in epochs and supports early stopping."""

    def fit(self, train: Any, seed: int, stopping: EarlyStopping | None = None) -> None:
        """Learn; `stopping` is asked after each epoch."""
        ...


def check(name: str) -> None:
    """Raises BadInput for a name that is not in MODELS."""
    if name not in (*MODELS, AUTO):
        raise BadInput(f"--model {name!r}: expected one of {', '.join((*MODELS, AUTO))}")


def make(name: str, settings: Mapping[str, Any]) -> MatrixModel:
    """A model by its name. Raises KeyError for a name that is not in MODELS."""
    model: MatrixModel = _class_of(name)(**settings)
    return model


def defaults(name: str) -> dict[str, Any]:
    """The settings of a model without a search."""
    model = _class_of(name)()
    return asdict(getattr(model, "config", model))


def data_for(model: MatrixModel, rows: Interactions) -> Any:
    """What a model learns from: the rows themselves, or their CSR of ones."""
    return rows if getattr(model, "sequential", False) else rows.matrix()


def observe(model: MatrixModel, rows: Interactions) -> None:
    """Replace the histories that a model scores, if it can without another fit."""
    if hasattr(model, "observe"):
        model.observe(data_for(model, rows))


def searchable(name: str) -> bool:
    """Whether a model has settings to search."""
    return name in _SPACES


def ranking_seconds(name: str, users: int, items: int) -> float:
    """A rough time to score all items for users; 0 for models that are fast."""
    return users * items / _RANKED_PER_S[name] if name in _RANKED_PER_S else 0.0


def within_time(
    name: str, settings: Mapping[str, Any], n_items: int, seconds: float
) -> dict[str, Any]:
    """The settings, changed where the fit would take much longer than `seconds`."""
    settings = dict(settings)
    if "seconds" in settings:
        settings["seconds"] = min(settings["seconds"], seconds)
    if name == "item_item" and settings["ridge"] < PLAIN_FROM:
        if n_items <= settings["dense_up_to"] and n_items**3 / _SOLVED_PER_S > seconds:
            settings["dense_up_to"] = min(n_items - 1, _DENSE)
        if n_items > settings["dense_up_to"] and n_items / _NEIGHBOURHOODS_PER_S > seconds:
            settings["ridge"] = PLAIN_FROM
    return settings


def suggested(name: str, trial: Trial) -> dict[str, Any]:
    """Settings that a search tries."""
    return _SPACES[name](trial)


def first_settings(name: str, default: dict[str, Any]) -> list[dict[str, Any]]:
    """Settings to try first: the defaults and those of the literature, the cheap ones first."""
    if name == "item_item":
        plain = {"user_power": 0.0, "item_power": 0.0, "before": 0.0, "after": 0.0, "low_pass": 0.0}
        gf_cf = {**plain, "ridge": 1000.0, "user_power": 0.5, "item_power": 0.5}
        filters = [{"low_pass": 0.9, "components": 64}, {"low_pass": 0.9, "components": 256}]
        ease = {**plain, "ridge": 5.0}
        return [{**default, "ridge": 1000.0}, *(gf_cf | f for f in filters), default, ease]
    if name == "transitions":
        nearby = [
            {"recent": 10, "decay": 0.8},
            {"source_power": 0.5},
            {"user_power": 0.5},
            {"lag_power": 0.8},
            {"back": 0.7},
        ]
        return [default, *nearby]
    if name == "als":
        return [
            default,
            {"reg": 10.0, "alpha": 30.0},
            {"reg_power": 1.0},
        ]
    return [default]


def _class_of(name: str) -> Callable[..., Any]:
    if name == "ncf":
        from training.models.ncf import Ncf

        return Ncf
    if name == "two_tower":
        from training.models.two_tower import TwoTower

        return TwoTower
    if name == "sequence":
        from training.models.sequence_split import SequenceModel

        return SequenceModel
    known: dict[str, Callable[..., Any]] = {
        "popularity": Popularity,
        "item_item": ItemItem,
        "transitions": TransitionModel,
        "als": NumpyAls,
    }
    return known[name]


def _item_item(trial: Trial) -> dict[str, Any]:
    return {
        "ridge": trial.suggest_float("ridge", 0.5, 3000, log=True),
        "user_power": trial.suggest_float("user_power", 0.0, 0.8),
        "item_power": trial.suggest_float("item_power", 0.0, 0.6),
        "before": trial.suggest_float("before", 0.0, 0.6),
        "after": trial.suggest_float("after", -0.2, 0.5),
        "low_pass": trial.suggest_float("low_pass", 0.0, 1.5),
        "components": trial.suggest_categorical("components", [32, 64, 128, 256]),
    }


def _transitions(trial: Trial) -> dict[str, Any]:
    return {
        "lag_power": trial.suggest_float("lag_power", 0.0, 1.2),
        "user_power": trial.suggest_float("user_power", 0.0, 0.8),
        "source_power": trial.suggest_float("source_power", 0.0, 0.8),
        "back": trial.suggest_float("back", 0.0, 1.0),
        "recent": trial.suggest_int("recent", 1, 50, log=True),
        "decay": trial.suggest_float("decay", 0.3, 1.0),
        "count": trial.suggest_categorical("count", [50, 200]),
    }


def _als(trial: Trial) -> dict[str, Any]:
    alpha = trial.suggest_float("alpha", 1.0, 100.0, log=True)
    return {
        "rank": trial.suggest_categorical("rank", [64, 128, 256]),
        "alpha": alpha,
        "reg": trial.suggest_float("reg", 0.1 * alpha, alpha, log=True),  # their ratio decides
        "reg_power": trial.suggest_float("reg_power", 0.0, 1.0),
    }


def _ncf(trial: Trial) -> dict[str, Any]:
    return {
        "decay": trial.suggest_float("decay", 1e-3, 0.5, log=True),
        "rate": trial.suggest_float("rate", 0.001, 0.01, log=True),
    }


def _two_tower(trial: Trial) -> dict[str, Any]:
    return {
        "temperature": trial.suggest_float("temperature", 0.07, 0.4, log=True),
        "own": trial.suggest_float("own", 0.0, 1.5),
        "dropout": trial.suggest_float("dropout", 0.0, 0.7),
        "decay": trial.suggest_float("decay", 3e-5, 0.03, log=True),
    }


def _sequence(trial: Trial) -> dict[str, Any]:
    return {
        "temperature": trial.suggest_float("temperature", 0.07, 0.2, log=True),
        "dropout": trial.suggest_float("dropout", 0.2, 0.6),
        "rate": trial.suggest_float("rate", 0.0005, 0.004, log=True),
    }


_SPACES: dict[str, Callable[[Trial], dict[str, Any]]] = {
    "item_item": _item_item,
    "transitions": _transitions,
    "als": _als,
    "ncf": _ncf,
    "two_tower": _two_tower,
    "sequence": _sequence,
}

"""The models by name: their knobs, and where the search for them looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna import Trial

from afterclick.errors import BadInput
from training.benchmark.factors import Als
from training.benchmark.linear import ItemItem, Popularity
from training.benchmark.watch import Watch

MODELS = ("popularity", "item_item", "als", "ncf", "two_tower")


class Recommender(Protocol):
    """What every model can do."""

    def fit(self, train: Any, seed: int) -> None:
        """Learn from a CSR of ones (n_users, n_items)."""
        ...

    def scores(self, users: NDArray[np.intp]) -> NDArray[np.float32]:
        """(b, n_items) higher is better."""
        ...


class EpochRecommender(Recommender, Protocol):
    """A model that learns in epochs, and lets itself be watched."""

    def fit(self, train: Any, seed: int, watch: Watch | None = None) -> None:
        """As before; after each epoch `watch` is asked whether to go on."""
        ...


def check(name: str) -> None:
    """Raises BadInput for a name that is not in MODELS."""
    if name not in MODELS:
        raise BadInput(f"--model {name!r}: one of {', '.join(MODELS)}")


def make(name: str, knobs: Mapping[str, Any]) -> Recommender:
    """A model by its name. Raises KeyError for a name that is not in MODELS."""
    model: Recommender = _maker(name)(**knobs)
    return model


def defaults(name: str) -> dict[str, Any]:
    """The knobs of a model where nothing is searched."""
    return asdict(_maker(name)())


def suggest(name: str, trial: Trial) -> dict[str, Any]:
    """The next knobs to try."""
    return _SPACES[name](trial)


def starts(name: str) -> list[dict[str, Any]]:
    """Knobs to try before the search goes its own way: the defaults, and what the literature knows.

    What is cheap in a large catalogue comes first.
    """
    default = defaults(name)
    if name == "item_item":
        plain = {"user_power": 0.0, "item_power": 0.0, "before": 0.0, "after": 0.0, "low_pass": 0.0}
        gf_cf = {**plain, "ridge": 1000.0, "user_power": 0.5, "item_power": 0.5, "low_pass": 0.2}
        ease = {**plain, "ridge": 5.0}
        return [{**default, "ridge": 1000.0}, gf_cf, default, ease]
    if name == "als":
        return [
            default,
            {"rank": 128, "reg": 3.0, "alpha": 10.0},
            {"rank": 64, "reg": 1.0, "alpha": 3.0},
        ]
    return [default]


def _maker(name: str) -> Callable[..., Any]:
    if name == "ncf":
        from training.benchmark.ncf import Ncf

        return Ncf
    if name == "two_tower":
        from training.benchmark.two_tower import TwoTower

        return TwoTower
    return {"popularity": Popularity, "item_item": ItemItem, "als": Als}[name]


def _item_item(trial: Trial) -> dict[str, Any]:
    return {
        "ridge": trial.suggest_float("ridge", 0.5, 3000, log=True),
        "user_power": trial.suggest_float("user_power", 0.0, 0.8),
        "item_power": trial.suggest_float("item_power", 0.0, 0.6),
        "before": trial.suggest_float("before", 0.0, 0.6),
        "after": trial.suggest_float("after", -0.2, 0.5),
        "low_pass": trial.suggest_float("low_pass", 0.0, 0.5),
        "components": trial.suggest_categorical("components", [16, 32, 64, 128]),
    }


def _als(trial: Trial) -> dict[str, Any]:
    return {
        "rank": trial.suggest_categorical("rank", [32, 64, 128, 256]),
        "reg": trial.suggest_float("reg", 0.03, 20.0, log=True),
        "alpha": trial.suggest_float("alpha", 1.0, 60.0, log=True),
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


_SPACES: dict[str, Callable[[Trial], dict[str, Any]]] = {
    "item_item": _item_item,
    "als": _als,
    "ncf": _ncf,
    "two_tower": _two_tower,
}

"""Analysis of evaluated lists: expected clicks under a stated click model, and hit rate by segment.

The lists were never shown; the figures are arithmetic on assumptions, and each carries them:
- a user examines rank r with probability r^(−eta) (eta ≈ 1 in Joachims et al., WSDM 2017)
- an examined item is clicked with probability `relevant` if the user chose it next, else `other`
- a click on the chosen item becomes a purchase with probability `buy`, any other with `buy_other`
The lift over decayed popularity (half-life a week) is a ratio of the two expectations on the same
users, with a paired bootstrap. It restates the position-weighted hits of two lists and predicts no
revenue.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.trends import DAY_MS
from training.evaluation import list_metrics
from training.evaluation.measure import Answers, mean_and_interval
from training.models.popularity import first_seen
from training.protocols import EvaluationSplit

RANKS = 10
BASE = "decayed_popularity"
"""The best list that needs no model; a lift over all-time popularity would flatter every model."""


@dataclass(frozen=True)
class ClickModel:
    """The assumptions."""

    eta: float = 1.0
    """Strength of the position bias."""
    relevant: float = 0.5
    """Click probability of the item that the user chose next, once examined."""
    other: float = 0.01
    """Click probability of any other item, once examined."""
    buy: float = 0.2
    """A click on the chosen item becomes a purchase."""
    buy_other: float = 0.01
    """A click on another item becomes a purchase."""

    @property
    def position_weights(self) -> NDArray[np.float64]:
        """(RANKS,) probability that a user examines each rank."""
        return np.asarray(np.arange(1, RANKS + 1) ** -self.eta, np.float64)

    def clicks(self, hits: NDArray[np.bool_], shown: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(q,) expected clicks on each list."""
        return self._sum(hits, shown, self.relevant, self.other)

    def purchases(self, hits: NDArray[np.bool_], shown: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(q,) expected purchases from each list."""
        return self._sum(hits, shown, self.relevant * self.buy, self.other * self.buy_other)

    def _sum(
        self, hits: NDArray[np.bool_], shown: NDArray[np.bool_], right: float, wrong: float
    ) -> NDArray[np.float64]:
        examined = self.position_weights[: hits.shape[1]]
        return np.asarray((np.where(hits, right, wrong) * shown * examined).sum(axis=1), np.float64)


SENSITIVITY: dict[str, dict[str, float]] = {
    "no position bias": {"eta": 0.0},
    "strong position bias": {"eta": 2.0},
    "curious users": {"other": 0.03},
    "picky users": {"other": 0.002},
}


def simulate(answers: Answers, base: str = BASE, seed: int = 42) -> dict[str, Any]:
    """Assumptions; scorer → clicks per list, lift of clicks and purchases over `base`, with
    intervals.

    `sensitivity` repeats the lift of clicks under other assumptions, named.
    """
    model = ClickModel()
    return {
        "assumptions": _assumptions(model, base),
        "lists": {name: _earned(answers, name, base, model, seed) for name in answers.lists},
        "sensitivity": {
            what: {
                name: _lift(answers, name, base, replace(model, **changes))
                for name in answers.lists
            }
            for what, changes in SENSITIVITY.items()
        },
    }


def _assumptions(model: ClickModel, base: str) -> dict[str, Any]:
    """The parameters of the click model, and what its figures mean."""
    return {
        **asdict(model),
        "base": base,
        "position_weights": model.position_weights.round(4).tolist(),
        "click_lift": f"expected clicks per list divided by those of {base}, minus 1; "
        "nobody saw or clicked these lists",
        "purchase_lift": "almost the ratio of the position-weighted hits, as any other item is "
        f"bought {model.relevant * model.buy / (model.other * model.buy_other):,.0f} times less "
        "often than the chosen one; a forecast of neither orders nor revenue",
    }


def _earned(answers: Answers, name: str, base: str, model: ClickModel, seed: int) -> dict[str, Any]:
    own, base_list = _shown(answers, name), _shown(answers, base)
    clicks = (model.clicks(*own), model.clicks(*base_list))
    bought = (model.purchases(*own), model.purchases(*base_list))
    return {
        "clicks_per_list": float(clicks[0].mean()),
        "click_lift": _ratio(*clicks),
        "click_lift_interval": _interval(*clicks, seed),
        "purchase_lift": _ratio(*bought),
        "purchase_lift_interval": _interval(*bought, seed),
    }


def _lift(answers: Answers, name: str, base: str, model: ClickModel) -> float:
    return _ratio(model.clicks(*_shown(answers, name)), model.clicks(*_shown(answers, base)))


def _shown(answers: Answers, name: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    lists = answers.lists[name][:, :RANKS]
    return list_metrics.hits_of(lists, answers.queries.targets), lists >= 0


def _ratio(own: NDArray[np.float64], base_list: NDArray[np.float64]) -> float:
    return (
        float(own.mean() / base_list.mean() - 1.0)
        if len(own) and base_list.mean() > 0
        else float("nan")
    )


def _interval(
    own: NDArray[np.float64], base_list: NDArray[np.float64], seed: int, rounds: int = 500
) -> list[float] | None:
    if not len(own):
        return None
    random = np.random.default_rng(seed)
    chosen = (random.integers(0, len(own), len(own)) for _ in range(rounds))
    draws = [_ratio(own[rows], base_list[rows]) for rows in chosen]
    return [float(q) for q in np.quantile(draws, [0.025, 0.975])]


HISTORY = ((0, 0), (1, 1), (2, 4), (5, 9), (10, 10**9))
AGE_DAYS = ((0, 90), (90, 365), (365, 730), (730, 10**9))
_MIN_QUERIES = 20
"""Segments with fewer queries are left out."""


def segments(
    split: EvaluationSplit, answers: Answers, seed: int = 42
) -> dict[str, dict[str, dict[str, Any]]]:
    """Kind of segment → its name → `users`, and scorer → HR@10 with its interval."""
    length = split.train.user_counts()[answers.queries.user]
    seen = first_seen(split.train)[answers.queries.targets].max(
        axis=1, initial=-np.inf, where=answers.queries.targets >= 0
    )
    age = (answers.queries.now_ms - seen) / DAY_MS
    return {
        "history": _by(answers, length, HISTORY, "items", seed),
        "item_age": _by(answers, np.floor(age).astype(np.int64), AGE_DAYS, "days", seed),
    }


def _by(
    answers: Answers,
    value: NDArray[np.int64],
    bounds: tuple[tuple[int, int], ...],
    unit: str,
    seed: int,
) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    for low, high in bounds:
        inside = (value >= low) & ((value <= high) if unit == "items" else (value < high))
        if inside.sum() < _MIN_QUERIES:
            continue
        out[_name(low, high, unit)] = {"users": int(inside.sum())} | {
            name: _hit_rate(lists[inside], answers.queries.targets[inside], seed)
            for name, lists in answers.lists.items()
        }
    return out


def _hit_rate(lists: NDArray[np.int32], targets: NDArray[np.int32], seed: int) -> dict[str, Any]:
    relevant = (targets >= 0).sum(axis=1).astype(np.int32)
    hits = list_metrics.hit_rate(list_metrics.hits_of(lists, targets), relevant, 10)
    return mean_and_interval("hr@10", hits, seed)


def _name(low: int, high: int, unit: str) -> str:
    if high >= 10**9:
        return f"{low} {unit} or more"
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"

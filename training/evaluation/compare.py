"""Ask every contestant the questions of every protocol, and measure the lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import Float64Array, IntArray
from afterclick.quarantine import QuarantineLimits
from training.evaluation import metrics
from training.evaluation.contestants import Contestant
from training.evaluation.protocols import PROTOCOLS, Queries, Split, queries, sample
from training.evaluation.ranking import LENGTH, top_n
from training.evaluation.states import Asked, replay

_BATCH = 256
SHOWN = 10
"""Places that the metrics beyond accuracy look at."""


@dataclass(frozen=True)
class Answers:
    """The lists of each contestant for the questions of one protocol."""

    asked: Queries
    lists: dict[str, IntArray]
    """contestant → (q, LENGTH)"""


@dataclass(frozen=True)
class Catalogue:
    """What beyond-accuracy metrics need to know of the items."""

    counts: NDArray[np.int64]
    """(n_items,) training interactions"""
    vectors: NDArray[np.float32]
    """(n_items, d) of length 1 or 0: what makes two items alike"""
    ranked: int
    """How many items are ranked."""
    users: int
    profiles: Float64Array
    """(n_users,) mean popularity of each user's own training interactions; NaN without any"""


def answer_all(
    split: Split,
    contestants: Mapping[str, Contestant],
    of_every_item: Mapping[str, Contestant],
    most: int | None = None,
    seed: int = 42,
) -> dict[str, Answers]:
    """Protocol → the lists of every contestant, on at most `most` questions each.

    `of_every_item`: the same contestants, who may show every item; they answer `cold_items`.
    """
    live = sample(queries(split, "live"), most, seed)
    found = {}
    for protocol in PROTOCOLS:
        asked = _questions(split, protocol, live, most, seed)
        if protocol == "cold_items":
            found[protocol] = answer(split.of_every_item, of_every_item, asked, seed)
        else:
            found[protocol] = answer(split, contestants, asked, seed)
    return found


def _questions(split: Split, protocol: str, live: Queries, most: int | None, seed: int) -> Queries:
    """`frozen` and `trends` ask the very users of `live`, so that their difference is paired."""
    asked = queries(split, protocol)
    if protocol in ("live", "frozen", "trends"):
        return asked.where(np.isin(asked.user, live.user))
    return sample(asked, most, seed)


def answer(
    split: Split,
    contestants: Mapping[str, Contestant],
    asked: Queries,
    seed: int,
    bounds: QuarantineLimits | None = None,
) -> Answers:
    """The lists of every contestant for these questions."""
    lists = {name: np.full((len(asked), LENGTH), -1, np.int32) for name in contestants}
    random = np.random.default_rng(seed)
    ranked = np.flatnonzero(split.eligible).astype(np.int32)
    batch: list[Asked] = []
    for one in replay(split.rows, asked, bounds=bounds):
        batch.append(one)
        if len(batch) == _BATCH:
            _fill(lists, contestants, batch, ranked, random)
            batch = []
    if batch:
        _fill(lists, contestants, batch, ranked, random)
    return Answers(asked, lists)


def _fill(
    lists: dict[str, IntArray],
    contestants: Mapping[str, Contestant],
    batch: list[Asked],
    ranked: IntArray,
    random: np.random.Generator,
) -> None:
    rows = [one.query for one in batch]
    for name, contestant in contestants.items():
        scores = np.empty((len(batch), len(ranked)), np.float32)
        for row, one in enumerate(batch):
            all_scores = contestant(one).astype(np.float32)  # a copy: the contestant's own stays
            all_scores[one.state.seen] = -np.inf
            scores[row] = all_scores[ranked]
        lists[name][rows] = top_n(scores, ranked, random)


def measure(answers: Answers, catalogue: Catalogue, seed: int = 42) -> dict[str, dict[str, Any]]:
    """Contestant → metric → mean over users; `<metric>_interval` holds its 95 % bootstrap interval."""
    return {
        name: _measures(lists, answers.asked, catalogue, seed)
        for name, lists in answers.lists.items()
    }


def _measures(lists: IntArray, asked: Queries, catalogue: Catalogue, seed: int) -> dict[str, Any]:
    hits = metrics.hits_of(lists, asked.target)
    shown = lists[:, :SHOWN]
    values = metrics.accuracy(hits, np.ones(len(asked), np.int32))
    values["diversity@10"] = metrics.diversity(shown, catalogue.vectors)
    values["novelty@10"] = metrics.novelty(shown, catalogue.counts, catalogue.users)
    out: dict[str, Any] = {}
    for name, value in values.items():
        out[name] = float(value.mean()) if len(value) else None
        out[f"{name}_interval"] = list(metrics.interval(value, seed)) if len(value) else None
    out["coverage@10"] = metrics.coverage(shown, catalogue.ranked)
    out["coverage@10_interval"] = _list_interval(shown, catalogue.ranked, seed)
    out["gini@10"] = metrics.gini(shown, catalogue.ranked)
    own = catalogue.profiles[asked.user]
    out["popularity_lift@10"] = metrics.popularity_lift(shown, catalogue.counts, own)
    return out


def _list_interval(
    shown: IntArray, ranked: int, seed: int, rounds: int = 100
) -> list[float] | None:
    """Bootstrap interval of coverage. Resampling users shows fewer items, so it lies below the figure."""
    if not len(shown):
        return None
    random = np.random.default_rng(seed)
    draws = [
        metrics.coverage(shown[random.integers(0, len(shown), len(shown))], ranked)
        for _ in range(rounds)
    ]
    return [float(q) for q in np.quantile(draws, [0.025, 0.975])]


def freshness(live: Answers, frozen: Answers, name: str, seed: int = 42) -> dict[str, Any]:
    """What the live event and live trends are worth: HR@10 and NDCG@10 of `live` minus `frozen`, paired."""
    order, other = np.argsort(live.asked.user), np.argsort(frozen.asked.user)
    out: dict[str, Any] = {}
    for metric in ("hr@10", "ndcg@10"):
        one = metrics.accuracy(*_hits(live, name))[metric][order]
        two = metrics.accuracy(*_hits(frozen, name))[metric][other]
        out[metric] = float((one - two).mean()) if len(one) else None
        out[f"{metric}_interval"] = list(metrics.interval(one - two, seed)) if len(one) else None
    return out


def _hits(answers: Answers, name: str) -> tuple[NDArray[np.bool_], IntArray]:
    hits = metrics.hits_of(answers.lists[name], answers.asked.target)
    return hits, np.ones(len(answers.asked), np.int32)

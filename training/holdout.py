"""Ask models the questions of the newest interactions, the way serving would answer them.

Champion and challenger have different items; a question names its target by row of one common space, and each
model sees the interactions renumbered so that its own items come first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import FloatArray
from afterclick.model import Model
from afterclick.ranking import CandidateGenerator
from afterclick.trends import DAY_MS
from training.evaluation import metrics
from training.evaluation.protocols import NOBODY, Queries, Split, queries, sample
from training.evaluation.states import Asked, replay
from training.interactions import Interactions

Score = Callable[[FloatArray], NDArray[np.floating]]
"""Feature rows (c, F) → scores (c,)"""
PROTOCOLS = ("returning", "live")
LENGTH = 20


@dataclass(frozen=True)
class Holdout:
    """The newest interactions and what is asked about them."""

    split: Split
    asked: dict[str, Queries]

    @property
    def users(self) -> int:
        """Questions in all."""
        return sum(len(q) for q in self.asked.values())


def cut_of(rows: Interactions, share: float) -> int:
    """The midnight (UTC, ms) after which about `share` of the rows come; at least one row comes before it."""
    moment = rows.time_ms[min(int(len(rows) * (1 - share)), len(rows) - 1)]
    midnight = int(moment // DAY_MS * DAY_MS)
    return midnight if rows.time_ms[0] < midnight else int(moment)


def make(rows: Interactions, cut_ms: int, least: int, most: int, seed: int) -> Holdout:
    """The questions on the rows from `cut_ms` on, at most `most` of each protocol."""
    end_ms = int(rows.time_ms[-1]) + 1
    split = Split(rows, cut_ms, end_ms, np.ones(len(rows), bool), least)
    return Holdout(split, {p: sample(queries(split, p), most, seed) for p in PROTOCOLS})


def judge(
    holdout: Holdout, model: Model, score: Score
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """protocol → metric → (questions,) of the lists that this model would have shown."""
    rows, place = renumber(holdout.split.rows, model.item_ids)
    return {
        protocol: _metrics(
            _lists(model, score, rows, _renumbered(asked, place)), place[asked.target]
        )
        for protocol, asked in holdout.asked.items()
    }


def baseline(holdout: Holdout) -> dict[str, dict[str, NDArray[np.float64]]]:
    """The same questions answered by what trends: the heaviest decayed popularity of a week."""
    model_free = {}
    for protocol, asked in holdout.asked.items():
        lists = np.full((len(asked), LENGTH), -1, np.int32)
        for one in replay(holdout.split.rows, asked):
            week = one.trends.log_share[:, 3].copy()
            week[one.state.seen] = -np.inf
            best = _best(week, LENGTH)
            lists[one.query, : len(best)] = best
        model_free[protocol] = _metrics(lists, asked.target)
    return model_free


def renumber(
    rows: Interactions, item_ids: NDArray[np.str_]
) -> tuple[Interactions, NDArray[np.int32]]:
    """The rows with the items of `item_ids` numbered first, in that order; and old index → new index."""
    index = {item: i for i, item in enumerate(item_ids.tolist())}
    place = np.empty(len(rows.item_ids), np.int32)
    extra: list[str] = []
    for old, item in enumerate(rows.item_ids.tolist()):
        new = index.get(item)
        if new is None:
            new = len(item_ids) + len(extra)
            extra.append(item)
        place[old] = new
    ids = np.concatenate([item_ids, np.asarray(extra, np.str_)]) if extra else item_ids
    return replace(rows, item_ids=ids, item=place[rows.item]), place


def _renumbered(asked: Queries, place: NDArray[np.int32]) -> Queries:
    live = np.where(asked.live_item >= 0, place[asked.live_item], NOBODY).astype(np.int32)
    return replace(asked, target=place[asked.target], live_item=live)


def _lists(model: Model, score: Score, rows: Interactions, asked: Queries) -> NDArray[np.int32]:
    generator = CandidateGenerator.exact(model)
    lists = np.full((len(asked), LENGTH), -1, np.int32)

    def answer(one: Asked) -> NDArray[np.int32]:
        query = generator.query(one.state, one.trends)
        items = generator.retrieve(query).items
        return items[_best(score(generator.features(query, items)), LENGTH)]

    for one in replay(rows, asked):
        shown = answer(one)
        lists[one.query, : len(shown)] = shown
    return lists


def _best(scores: NDArray[np.floating], n: int) -> NDArray[np.intp]:
    n = min(n, len(scores))
    top = np.argpartition(-scores, n - 1)[:n] if n else np.empty(0, np.intp)
    return top[np.argsort(-scores[top], kind="stable")]


def _metrics(lists: NDArray[np.int32], target: NDArray[np.int32]) -> dict[str, NDArray[np.float64]]:
    hits, one = metrics.hits_of(lists, target), np.ones(len(target), np.int32)
    return {
        "hr@10": metrics.hit_rate(hits, one, 10),
        "ndcg@10": metrics.ndcg(hits, one, 10),
        "ndcg@20": metrics.ndcg(hits, one, 20),
        "mrr@20": metrics.reciprocal_rank(hits, one, 20),
    }

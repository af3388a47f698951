"""The ranker: LambdaMART over the candidates of all sources, learned on past cuts.

At each past cut a model is fitted on the rows before it and queried for what came after it, with
the user states and trends of those moments; so every feature is as old as it will be when served,
and none contains the future. Candidates and features come from afterclick/ranking.py, as in
serving.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from afterclick.arrays import Float64Array, FloatArray, Int64Array, IntArray
from afterclick.features import FEATURE_NAMES
from afterclick.model import Model
from afterclick.ranking import CandidateGenerator
from afterclick.tree_ranker import TreeRanker
from afterclick.trends import DAY_MS
from training import served_lists
from training.config import RankerConfig, ReplayConfig
from training.event_log import EventLog
from training.graph_replay import GraphReplay
from training.interactions import TooFewInteractions
from training.models import boosted_trees
from training.protocols import EvaluationSplit, list_queries, moments, sample, with_history
from training.query_replay import align, replay
from training.served_lists import ListGroup

FitPast = Callable[[EventLog], Model]
"""Fits a model on the events before a cut."""
_CONTEXT = [FEATURE_NAMES.index(name) for name in ("page", "device")]
MIN_QUERIES = 50
MAX_DISLIKED = 10
"""Disliked items that a query's targets are compared with."""


class NotEnoughHistory(TooFewInteractions):
    """The past cuts hold too few queries whose target is a candidate."""


@dataclass(frozen=True)
class RankerExamples:
    """Feature rows grouped by query, the targets first in each group."""

    rows: FloatArray
    """(r, F)"""
    grades: FloatArray
    """(r,) weight of the user's strongest action on a target; 0 for other candidates"""
    groups: IntArray
    """(g,) rows of each query"""
    queries: int
    """Queries, including those without a target among the candidates."""
    list_weights: FloatArray
    """(l,) weights of the last l groups, which are those of served lists; the others weigh 1"""

    @property
    def targeted(self) -> int:
        """Queries with a target among the candidates."""
        return len(self.groups) - len(self.list_weights)

    @classmethod
    def joined(cls, parts: list[RankerExamples]) -> RankerExamples:
        """The examples of all parts; groups of served lists last."""
        targets, lists = zip(*(part.split() for part in parts), strict=True)
        rows, grades, groups = (
            np.concatenate([getattr(part, name) for part in (*targets, *lists)])
            for name in ("rows", "grades", "groups")
        )
        weights = np.concatenate([part.list_weights for part in parts])
        return cls(rows, grades, groups, sum(part.queries for part in parts), weights)

    def in_contexts(self, contexts: Float64Array, random: np.random.Generator) -> RankerExamples:
        """Half of the queries with targets get the page and device of a list (l, 2) at random.

        Otherwise these features would tell queries from lists, and trees would learn from lists
        alone what holds for both.
        """
        n = self.targeted
        drawn = contexts[random.integers(len(contexts), size=n)].astype(np.float32)
        drawn[random.random(n) < 0.5] = np.nan
        rows = self.rows.copy()
        rows[: int(self.groups[:n].sum()), _CONTEXT] = np.repeat(drawn, self.groups[:n], axis=0)
        return replace(self, rows=rows)

    def split(self) -> tuple[RankerExamples, RankerExamples]:
        """The queries with targets, and the groups of served lists."""
        n, none = self.targeted, self.list_weights[:0]
        end = int(self.groups[:n].sum())
        targets = RankerExamples(
            self.rows[:end], self.grades[:end], self.groups[:n], self.queries, none
        )
        lists = RankerExamples(
            self.rows[end:], self.grades[end:], self.groups[n:], 0, self.list_weights
        )
        return targets, lists


@dataclass(frozen=True)
class FittedRanker:
    """A ranker, and facts about its training."""

    trees: TreeRanker
    queries: int
    """Queries with a target among the candidates."""
    candidate_recall: float
    """Share of the queries with a target among the candidates."""
    importance: dict[str, float]
    """Feature → share of the total gain."""
    list_groups: int = 0
    """Groups of served lists."""


def collect(
    log: EventLog, fit_past: FitPast, config: RankerConfig, known: ReplayConfig
) -> RankerExamples:
    """The examples of all past cuts of `log`; `known` decides what serving knows of users and
    trends.

    Raises NotEnoughHistory if they hold fewer than 50 queries with a target among the candidates.
    """
    decay = served_lists.position_decay(log.lists)
    found = []
    for split in past_splits(log, config):
        model = align(fit_past(log.before(split.cut_ms)), log.item_ids)
        found.append(examples(split, model, config, known))
        if config.list_weight and len(log.lists):
            found.append(list_examples(split, model, (config, known), decay))
    n_queries = sum(e.targeted for e in found)
    if n_queries < MIN_QUERIES:
        raise NotEnoughHistory(f"{n_queries} queries to learn from, {MIN_QUERIES} are needed")
    joined = RankerExamples.joined(found)
    contexts = log.lists.context
    if len(joined.list_weights) and not np.isnan(contexts).all():
        joined = joined.in_contexts(contexts, np.random.default_rng(config.seed))
    return joined


def learn(found: RankerExamples, config: RankerConfig) -> FittedRanker:
    """Learn the ranker from examples."""
    highest = found.grades.max()
    weights = None
    if len(found.list_weights):
        ones = np.ones(found.targeted, np.float32)
        weights = np.concatenate([ones, config.list_weight * found.list_weights])
    trees, importance = boosted_trees.fit(
        found.rows, found.grades / highest, found.groups, config, weights
    )
    return FittedRanker(
        trees=trees,
        queries=found.targeted,
        candidate_recall=found.targeted / max(found.queries, 1),
        list_groups=len(found.list_weights),
        importance=dict(zip(FEATURE_NAMES, importance.tolist(), strict=True)),
    )


def past_splits(log: EventLog, config: RankerConfig) -> Iterator[EvaluationSplit]:
    """The past cuts, newest first, as long as half of the events come before them.

    Every item is ranked, as in serving.
    """
    end, end_ms = len(log), int(log.time_ms[-1]) + 1 if len(log) else 0
    for _ in range(config.cuts if len(log) else 0):
        cut_ms = past_cut(log.time_ms[:end], config)
        end = int(np.searchsorted(log.time_ms, cut_ms))
        if 2 * end < len(log):
            return
        yield EvaluationSplit(log, cut_ms, end_ms, min_interactions=0)
        end_ms = cut_ms


def past_cut(time_ms: Int64Array, config: RankerConfig) -> int:
    """The cut (ms) whose queries are the newest of the events with these times, ascending.

    The shortest period of `horizon_days`, `horizon_span` and `horizon_events`, from a midnight
    (UTC) on if that leaves half of the events before it.
    """
    end_ms = int(time_ms[-1]) + 1
    cut_ms = max(
        end_ms - config.horizon_days * int(DAY_MS),
        end_ms - int((end_ms - time_ms[0]) * config.horizon_span),
        int(time_ms[int(len(time_ms) * (1 - config.horizon_events))]),
    )
    midnight = cut_ms // int(DAY_MS) * int(DAY_MS)
    return midnight if 2 * np.searchsorted(time_ms, midnight) >= len(time_ms) else cut_ms


def examples(
    split: EvaluationSplit, model: Model, config: RankerConfig, known: ReplayConfig
) -> RankerExamples:
    """The first contacts after a cut as targets among the candidates of their moment.

    Items that the user disliked between that moment and a day after the targets join the
    candidates."""
    random = np.random.default_rng(config.seed)
    feedback = split.log.negatives()
    queries = with_history(split, moments(split, config.seed))
    queries = sample(queries, config.queries, config.seed)
    model = align(model, split.log.item_ids)
    graphs = GraphReplay(model, split.log, split.cut_ms)
    exact = CandidateGenerator.exact(model, split.eligible)
    rows: list[FloatArray] = []
    grades: list[FloatArray] = []
    groups: list[int] = []
    for replayed in replay(split.log, queries, known):
        generator = exact.with_graph(graphs.at(replayed.user.now_ms))
        query = generator.query(replayed.user, replayed.trends)
        items = generator.retrieve(query).items
        targets = queries.targets[replayed.row]
        found = np.isin(targets, items)
        until_ms = int(queries.target_ms[replayed.row]) + int(DAY_MS)
        period = int(replayed.user.now_ms), until_ms
        disliked = feedback.items(replayed.user_index, period, MAX_DISLIKED)
        disliked = disliked[~np.isin(disliked, [*targets, *replayed.user.seen])]
        others = items[~np.isin(items, [*targets, *disliked])]
        if not found.any() or not len(others):
            continue
        negatives = random.choice(others, min(config.negatives, len(others)), replace=False)
        items = np.concatenate([targets[found], negatives, disliked]).astype(np.int32)
        rows.append(generator.features(query, items))
        zeros = np.zeros(len(negatives) + len(disliked), np.float32)
        grades += [queries.grades[replayed.row][found], zeros]
        groups.append(len(items))
    return _examples(rows, grades, groups, len(queries))


def list_examples(
    split: EvaluationSplit, model: Model, how: tuple[RankerConfig, ReplayConfig], decay: float
) -> RankerExamples:
    """The served lists of the period after a cut, with the features of their moments.

    `decay`: that of the position bias. At most as many lists as queries, the newest.
    """
    config, known = how
    lists = split.log.lists.between(split.cut_ms, split.end_ms).newest(config.queries)
    of_list: dict[int, list[ListGroup]] = {}
    for group in served_lists.groups(lists, decay):
        of_list.setdefault(group.list_number, []).append(group)
    graphs = GraphReplay(model, split.log, split.cut_ms)
    exact = CandidateGenerator.exact(model)
    rows: list[FloatArray] = []
    grades: list[FloatArray] = []
    groups: list[int] = []
    weights: list[float] = []
    numbers = list(of_list)
    asked = list_queries(lists.where(np.array(numbers, np.intp)))
    for replayed in replay(split.log, asked, known):
        user = lists.state(numbers[replayed.row], replayed.user)
        generator = exact.with_graph(graphs.at(replayed.user.now_ms))
        query = generator.query(user, replayed.trends)
        for group in of_list[numbers[replayed.row]]:
            rows.append(generator.features(query, group.items))
            grades.append(group.grades)
            groups.append(len(group.items))
            weights.append(group.weight)
    found = _examples(rows, grades, groups, 0)
    return replace(found, list_weights=np.array(weights, np.float32))


def _examples(
    rows: list[FloatArray], grades: list[FloatArray], groups: list[int], queries: int
) -> RankerExamples:
    """One array of each; empty without rows."""
    no_rows = np.empty((0, len(FEATURE_NAMES)), np.float32)
    nothing = np.empty(0, np.float32)
    return RankerExamples(
        np.concatenate([no_rows, *rows]),
        np.concatenate([nothing, *grades]),
        np.array(groups, np.int32),
        queries,
        nothing,
    )

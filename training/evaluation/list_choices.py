"""How models rank what users chose in served lists against what they were shown and did not choose.

Lists after the models' cuts, with the user states and trends of their moments. A click counts
1 / P(examined), as in training (`training.served_lists`).

`auc`   weighted share of the other examined items of the list that are ranked below the chosen one
`ndcg`  weighted mean of 1 / log2(1 + rank of the chosen one among them)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from afterclick.arrays import Float64Array
from afterclick.ranking import CandidateGenerator
from training import served_lists
from training.config import ReplayConfig
from training.evaluation.holdout import RankedModel
from training.event_log import EventLog
from training.graph_replay import GraphReplay
from training.protocols import list_queries
from training.query_replay import align, replay
from training.served_lists import ListGroup

MAX_LISTS = 5_000
"""The newest ones, in a larger log."""


@dataclass(frozen=True)
class ListChoices:
    """The figures of each model on the newest lists."""

    lists: int
    choices: int
    auc: dict[str, float]
    ndcg: dict[str, float]


def list_choices(
    log: EventLog, from_ms: int, models: Mapping[str, RankedModel], known: ReplayConfig
) -> ListChoices | None:
    """Judge models by the lists from a moment on; None without a choice."""
    decay = served_lists.position_decay(log.before(from_ms).lists)
    lists = log.lists.between(from_ms, int(log.time_ms[-1]) + 1).newest(MAX_LISTS)
    of_list: dict[int, list[ListGroup]] = {}
    for group in served_lists.groups(lists, decay):
        if group.is_choice:
            of_list.setdefault(group.list_number, []).append(group)
    if not of_list:
        return None
    ids = {name for ranked in models.values() for name in ranked.model.item_ids.tolist()}
    log = log.also(sorted(ids))
    aligned = {name: align(ranked.model, log.item_ids) for name, ranked in models.items()}
    graphs = {name: GraphReplay(aligned[name], log, r.cut_ms) for name, r in models.items()}
    generators = {name: CandidateGenerator.exact(model) for name, model in aligned.items()}
    numbers = list(of_list)
    asked = list_queries(lists.where(np.array(numbers, np.intp)))
    weights: list[float] = []
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for replayed in replay(log, asked, known):
        groups = of_list[numbers[replayed.row]]
        weights += [group.weight for group in groups]
        user = lists.state(numbers[replayed.row], replayed.user)
        for name, exact in generators.items():
            generator = exact.with_graph(graphs[name].at(replayed.user.now_ms))
            query = generator.query(user, replayed.trends)
            for group in groups:
                rows = generator.features(query, group.items)
                found[name].append(_figures(models[name].ranker.score(rows)))
    means = {name: np.average(values, axis=0, weights=weights) for name, values in found.items()}
    auc, ndcg = (
        {name: round(float(mean[column]), 5) for name, mean in means.items()} for column in (0, 1)
    )
    return ListChoices(len(numbers), len(weights), auc, ndcg)


def _figures(scores: Float64Array) -> tuple[float, float]:
    """AUC and NDCG of the first item (ties count half)."""
    above = float(np.sum(scores[1:] > scores[0]) + 0.5 * np.sum(scores[1:] == scores[0]))
    return 1.0 - above / (len(scores) - 1), float(1.0 / np.log2(2.0 + above))

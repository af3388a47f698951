"""Why an item is in the list, in words: the event of the user that it is nearest to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import FloatArray, IntArray
from afterclick.events import Action
from afterclick.features import RECENT
from afterclick.model import ItemContent, Model
from afterclick.state import HistoryEntry
from afterclick.user_vectors import UserState
from serving.state.item_catalogue import Catalogue
from serving.state.snapshot import ServingSnapshot

_DID = {
    Action.REVIEW: "reviewed",
    Action.VIEW: "viewed",
    Action.CLICK: "clicked",
    Action.LIKE: "liked",
    Action.BASKET: "put into your basket",
    Action.PURCHASE: "bought",
    Action.SKIP: "skipped",
}
_NEAR_ENOUGH = 0.05
"""Affinity from which an item counts as being like another."""
_WORDS = {
    "trending": "trending now",
    "popular": "popular with everyone",
    "als": "people like you chose it",
    "tower": "people like you chose it",
}


def reasons(
    model: Model,
    snapshot: ServingSnapshot,
    state: UserState,
    shown: IntArray,
    sources: Sequence[str],
    history: Sequence[HistoryEntry],
    catalogue: Catalogue,
) -> list[str]:
    """A reason for each shown item."""
    recent = state.items[:RECENT]
    if not len(recent):
        return [_WORDS.get(source, "fits what you did lately") for source in sources]
    near = affinity(model, snapshot.content, recent, shown)
    nearest, strength = near.argmax(axis=1).tolist(), near.max(axis=1).tolist()
    did = {
        entry.item_id: _DID[entry.action]
        for entry in reversed(history)
        if entry.action is not Action.SKIP
    }
    words = []
    for at, how_near, source in zip(nearest, strength, sources, strict=True):
        if how_near < _NEAR_ENOUGH:
            words.append(_WORDS.get(source, "fits what you did lately"))
            continue
        because = snapshot.ids[int(recent[at])]
        words.append(f"because you {did.get(because, 'chose')} {catalogue.name(because)}")
    return words


def affinity(
    model: Model, content: ItemContent | None, recent: IntArray, shown: IntArray
) -> NDArray[np.float64]:
    """(shown, recent) how near each shown item is to each recent one: shared users first, then vectors."""
    rows, past = (np.where(items < len(model), items, 0) for items in (shown, recent))
    near = _listed(model.neighbour_items[past], model.neighbour_scores[past], shown)
    near += _listed(model.same_day_items[past], model.same_day_scores[past], shown)
    if model.factors is not None and model.norms is not None:
        lengths = np.outer(model.norms[rows], model.norms[past])
        lengths[lengths == 0] = 1.0
        near += 0.1 * np.maximum(model.factors[rows] @ model.factors[past].T / lengths, 0.0)
    near[shown >= len(model)] = 0.0
    near[:, recent >= len(model)] = 0.0
    if content is not None:  # of length 1, or 0
        near += 0.2 * np.maximum(content.rows(shown) @ content.rows(recent).T, 0.0)
    return near


def _listed(neighbours: IntArray, scores: FloatArray, shown: IntArray) -> NDArray[np.float64]:
    """(shown, recent) the score of each shown item in each recent item's list of neighbours."""
    hits = shown[:, None, None] == neighbours[None]
    return np.asarray(np.where(hits, scores[None], 0.0).max(axis=2, initial=0.0), np.float64)

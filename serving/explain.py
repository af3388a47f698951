"""Why an item is in a list: a reason in words, and the events of the user that changed its score
most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import IntArray
from afterclick.events import Action
from afterclick.features import RECENT
from afterclick.kernels import as_items, pair_scores
from afterclick.model import ItemContent, Model
from afterclick.state import HistoryEntry
from afterclick.user_vectors import UserState
from serving.request import RequestUser
from serving.state.item_catalogue import Catalogue
from serving.state.snapshot import ServingSnapshot

MAX_LEFT_OUT = 8
"""Newest likes, and as many dislikes, that are left out, one at a time."""
MAX_ATTRIBUTIONS = 3
"""Events named per item."""
_MIN_AFFINITY = 0.05
"""Affinity from which an item counts as similar to another."""
_DID = {
    Action.REVIEW: "reviewed",
    Action.VIEW: "viewed",
    Action.CLICK: "clicked",
    Action.LIKE: "liked",
    Action.BASKET: "put into your basket",
    Action.PURCHASE: "bought",
    Action.SKIP: "skipped",
}
_REASONS = {
    "trending": "trending now",
    "popular": "popular with everyone",
    "als": "people like you chose it",
    "tower": "people like you chose it",
    "ncf": "people like you chose it",
    "transitions": "others chose it after what you chose",
}
_DEFAULT_REASON = "fits what you did lately"


def source_reasons(_: IntArray, sources: Sequence[str]) -> list[str]:
    """A reason by candidate source."""
    return [_REASONS.get(source, _DEFAULT_REASON) for source in sources]


def reasons(
    snapshot: ServingSnapshot, user: RequestUser, shown: IntArray, sources: Sequence[str]
) -> list[str]:
    """A reason per item: the most similar of the user's recent items, else its candidate source."""
    model, recent = snapshot.loaded.model, user.state.items[:RECENT]
    if model is None or not len(recent):
        return source_reasons(shown, sources)
    similarity = affinity(model, snapshot.content, recent, shown)
    nearest, strength = similarity.argmax(axis=1).tolist(), similarity.max(axis=1).tolist()
    did = {
        entry.item_id: _DID[entry.action]
        for entry in reversed(user.history)
        if entry.action is not Action.SKIP
    }
    texts = []
    for column, value, source in zip(nearest, strength, sources, strict=True):
        if value < _MIN_AFFINITY:
            texts.append(_REASONS.get(source, _DEFAULT_REASON))
            continue
        item_id = snapshot.ids[int(recent[column])]
        name = snapshot.catalogue.name(item_id)
        texts.append(f"because you {did.get(item_id, 'chose')} {name}")
    return texts


def affinity(
    model: Model, content: ItemContent | None, recent: IntArray, shown: IntArray
) -> NDArray[np.float64]:
    """(shown, recent) similarity: shared users, then factors and content as tie breakers."""
    new, new_past = shown >= len(model), recent >= len(model)
    some_new = bool(new.any() or new_past.any())
    rows, past = shown, recent
    if some_new:
        rows, past = np.where(new, 0, shown), np.where(new_past, 0, recent)
    asked = as_items(past), as_items(shown)
    near = pair_scores(model.neighbour_items, model.neighbour_scores, *asked)
    near += pair_scores(model.co_purchase_items, model.co_purchase_scores, *asked)
    if model.factors is not None and model.norms is not None:
        lengths = model.norms[rows][:, None] * model.norms[past]
        lengths[lengths == 0] = 1.0
        near += 0.1 * np.maximum(model.factors[rows] @ model.factors[past].T / lengths, 0.0)
    if some_new:
        near[new] = 0.0
        near[:, new_past] = 0.0
    if content is not None:  # rows have length 1 or 0
        near += 0.2 * np.maximum(content.rows(shown) @ content.rows(recent).T, 0.0)
    return near


def attributions(
    score: Callable[[UserState, IntArray], NDArray[np.float64]],
    snapshot: ServingSnapshot,
    user: RequestUser,
    shown: IntArray,
) -> list[list[dict[str, Any]]]:
    """Per shown item the events that changed its score most: leave-one-event-out.

    `effect` is the item's score minus its score without the event, by the same model at the same
    time.
    """
    state = user.state
    full = score(state, shown)
    liked, disliked = (items[:MAX_LEFT_OUT].tolist() for items in (state.items, state.disliked))
    without = [_without_like(state, row) for row in range(len(liked))]
    without += [_without_dislike(state, row) for row in range(len(disliked))]
    effects = np.array([full - score(other, shown) for other in without])
    effects = effects.reshape(len(without), len(shown))
    newest = {entry.item_id: entry for entry in reversed(user.history)}
    recent = [newest[snapshot.ids[item]] for item in (*liked, *disliked)]
    events = [_event(entry, snapshot.catalogue) for entry in recent]
    return [_top_attributions(events, effects[:, column]) for column in range(len(shown))]


def _without_like(state: UserState, row: int) -> UserState:
    return replace(
        state,
        items=np.delete(state.items, row),
        weights=np.delete(state.weights, row),
        times_ms=np.delete(state.times_ms, row),
    )


def _without_dislike(state: UserState, row: int) -> UserState:
    return replace(
        state,
        disliked=np.delete(state.disliked, row),
        disliked_ms=np.delete(state.disliked_ms, row),
    )


def _top_attributions(
    events: Sequence[dict[str, Any]], effects: NDArray[np.float64]
) -> list[dict[str, Any]]:
    order = np.argsort(-np.abs(effects), kind="stable")[:MAX_ATTRIBUTIONS].tolist()
    return [{**events[i], "effect": float(effects[i])} for i in order if effects[i]]


def _event(entry: HistoryEntry, catalogue: Catalogue) -> dict[str, Any]:
    return {
        "event_id": entry.event_id or None,
        "item_id": entry.item_id,
        "title": catalogue.title(entry.item_id),
        "action": entry.action,
    }

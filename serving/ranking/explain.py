"""Because: which of the user's events moved an item most, found by leaving each out and ranking again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import IntArray
from afterclick.state import HistoryEntry
from afterclick.user_vectors import UserState
from serving.state.item_catalogue import Catalogue
from serving.state.snapshot import ServingSnapshot

EVENTS = 8
"""How many of the newest events are left out, one at a time."""
NAMED = 3
"""Events named per item."""


def attributions(
    snapshot: ServingSnapshot,
    score: Callable[[UserState, IntArray], NDArray[np.float64]],
    state: UserState,
    shown: IntArray,
    history: Sequence[HistoryEntry],
    catalogue: Catalogue,
) -> list[list[dict[str, Any]]]:
    """For each shown item the events that moved its score most, and by how much.

    `effect` is the item's score less its score had the event not happened: same model, same moment.
    """
    full = score(state, shown)
    recent = state.items[:EVENTS].tolist()
    effects = np.zeros((len(recent), len(shown)))
    for row in range(len(recent)):
        effects[row] = full - score(_without(state, row), shown)
    newest = {entry.item_id: entry for entry in reversed(history)}
    events = [_event(newest[snapshot.ids[item]], catalogue) for item in recent]
    return [_strongest(events, effects[:, column]) for column in range(len(shown))]


def _without(state: UserState, row: int) -> UserState:
    """The user's state had one item never been touched."""
    return replace(
        state,
        items=np.delete(state.items, row),
        weights=np.delete(state.weights, row),
        times_ms=np.delete(state.times_ms, row),
    )


def _strongest(
    events: Sequence[dict[str, Any]], effects: NDArray[np.float64]
) -> list[dict[str, Any]]:
    order = np.argsort(-np.abs(effects), kind="stable")[:NAMED].tolist()
    return [{**events[i], "effect": float(effects[i])} for i in order if effects[i]]


def _event(entry: HistoryEntry, catalogue: Catalogue) -> dict[str, Any]:
    return {
        "event_id": entry.event_id or None,
        "item_id": entry.item_id,
        "title": catalogue.title(entry.item_id),
        "action": entry.action,
    }

"""A user at a moment: the state from the live history, and the models' vectors for it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import numpy as np

from afterclick.arrays import Float64Array, FloatArray, IntArray
from afterclick.events import Action
from afterclick.kernels import as_items, woodbury
from afterclick.model import Model
from afterclick.signals import Signals
from afterclick.state import PastEvent, effective, newest_reviews
from afterclick.transitions import NO_ROWS, TransitionGraph, TransitionRows

IdT = TypeVar("IdT")
MAX_DISLIKED = 20
"""Newest disliked items of a history that count."""
_WOODBURY_UP_TO = 40
"""Items of a history up to which fold-in by Woodbury's identity is cheaper."""


def _no_items() -> IntArray:
    return np.empty(0, np.int32)


def _no_times() -> Float64Array:
    return np.empty(0)


def context_code(label: str | None) -> float:
    """The code of a page or device for the ranker, 0 to 63; NaN: not known.

    Labels are the shop's own words, so they are hashed: Weinberger et al., Feature Hashing for
    Large Scale Multitask Learning, ICML 2009.
    """
    return math.nan if label is None else float(zlib.crc32(label.encode()) % 64)


NO_CONTEXT: Final = (math.nan, math.nan)


@dataclass(frozen=True)
class UserState:
    """A user's live history at a moment, by item index."""

    items: IntArray
    """(h,) items of positive actions, newest first, without repeats. Of a user's reviews of an item
    the newest counts; a negative one also outweighs the earlier actions on the item."""
    weights: FloatArray
    """(h,) weight of the strongest action on each item."""
    times_ms: Float64Array
    """(h,) event time of the newest action on each item."""
    seen: IntArray
    """Items never to show: every item of the history, skipped ones too, without undone ones."""
    now_ms: float
    disliked: IntArray = field(default_factory=_no_items)
    """(d,) items whose newest signal is negative, newest first, at most MAX_DISLIKED."""
    disliked_ms: Float64Array = field(default_factory=_no_times)
    """(d,) event time of that signal."""
    purchased: IntArray = field(default_factory=_no_items)
    """(p,) bought items, newest first, without repeats."""
    purchased_ms: Float64Array = field(default_factory=_no_times)
    """(p,) event time of the newest purchase of each."""
    context: tuple[float, float] = NO_CONTEXT
    """Codes of the page and the device on which the list is shown."""
    shown: IntArray = field(default_factory=_no_items)
    """(s,) items that the user was shown within a day, ascending."""
    shown_counts: IntArray = field(default_factory=_no_items)
    """(s,) how often."""

    def shown_on(self, page: str | None, device: str | None) -> UserState:
        """The state for a list on a page and a device."""
        return replace(self, context=(context_code(page), context_code(device)))

    def after_lists(self, counts: Mapping[int, int]) -> UserState:
        """The state of a user who was shown these items so often within a day."""
        items = np.array(sorted(counts), np.int32)
        times = np.array([counts[item] for item in items.tolist()], np.int32)
        return replace(self, shown=items, shown_counts=times)

    @classmethod
    def of(
        cls,
        history: Iterable[PastEvent[IdT]],
        index: Callable[[IdT], int | None],
        signals: Signals,
        now_ms: float,
    ) -> UserState:
        """From a history, newest event first. `index` maps an item id to its index, or None.

        The one definition of a user's state, for requests, training and evaluation.
        """
        liked: dict[int, tuple[float, float]] = {}
        seen: dict[int, None] = {}
        newest: dict[int, float | None] = {}
        purchased: dict[int, float] = {}
        entries = effective(history)
        reviews = newest_reviews(entries)
        for event in entries:
            item = index(event.item_id)
            if item is None:
                continue
            seen[item] = None
            weight = _weight(event, reviews.get(event.item_id), signals)
            if weight > 0:
                strongest, time_ms = liked.get(item, (0.0, float(event.time_ms)))
                liked[item] = (max(weight, strongest), time_ms)
            if weight and item not in newest:
                newest[item] = float(event.time_ms) if weight < 0 else None
            if event.action is Action.PURCHASE and item not in purchased:
                purchased[item] = float(event.time_ms)
        disliked = [(i, time_ms) for i, time_ms in newest.items() if time_ms is not None]
        disliked = disliked[:MAX_DISLIKED]
        return cls(
            np.fromiter(liked, np.int32, len(liked)),
            np.array([weight for weight, _ in liked.values()], np.float32),
            np.array([time_ms for _, time_ms in liked.values()], np.float64),
            np.fromiter(seen, np.int32, len(seen)),
            now_ms,
            np.array([item for item, _ in disliked], np.int32),
            np.array([time_ms for _, time_ms in disliked], np.float64),
            np.fromiter(purchased, np.int32, len(purchased)),
            np.fromiter(purchased.values(), np.float64, len(purchased)),
        )

    def at_resolution_of(self, model: Model) -> UserState:
        """The state with times at the model's resolution, and no event after now."""

        def rounded(times_ms: Float64Array) -> Float64Array:
            return model.at_resolution(np.minimum(times_ms, self.now_ms))

        return replace(
            self,
            times_ms=rounded(self.times_ms),
            now_ms=float(model.at_resolution(self.now_ms)),
            disliked_ms=rounded(self.disliked_ms) if len(self.disliked) else self.disliked_ms,
            purchased_ms=rounded(self.purchased_ms) if len(self.purchased) else self.purchased_ms,
        )

    def newest(self) -> UserState:
        """The state with only the newest item in the history."""
        return UserState(
            self.items[:1], self.weights[:1], self.times_ms[:1], self.seen, self.now_ms
        )


def _weight(event: PastEvent[Any], review: PastEvent[Any] | None, signals: Signals) -> float:
    """The weight of an event, given the user's newest review of its item."""
    if review is not None and event is not review:
        replaced = event.action is Action.REVIEW
        earlier = event.time_ms <= review.time_ms
        if replaced or (earlier and signals.weight(review.action, review.rating) < 0):
            return 0.0
    return signals.weight(event.action, event.rating)


@dataclass(frozen=True)
class UserVectors:
    """A user's state and vectors, computed once for retrieval and for features."""

    state: UserState
    """With times at the model's resolution."""
    factors: FloatArray | None
    """(k,) ALS factors; None where ALS knows no item of the history."""
    tower: FloatArray | None
    """(d + 1,) output of the user tower; None where it knows no item of the history."""
    transitions: TransitionRows = NO_ROWS
    """Of the newest items."""
    ncf: FloatArray | None = None
    """(d + 1 + h,) the user's vectors of NCF; None where it knows no item of the history."""

    @classmethod
    def of(
        cls, model: Model, state: UserState, transitions: TransitionGraph | None = None
    ) -> UserVectors:
        """`transitions`: default the model's; give the snapshot's to include live ones."""
        state, graph = state.at_resolution_of(model), transitions or model.transitions
        rows = NO_ROWS if graph is None else graph.rows(state.items)
        vectors = fold_in(model, state), tower_user(model, state)
        return cls(state, *vectors, rows, ncf_user(model, state))


def fold_in(model: Model, state: UserState) -> FloatArray | None:
    """The user's ALS factors (k,), by one k × k solve; None where ALS knows no item of the history.

    Hu, Koren, Volinsky (ICDM 2008), eq. 4, as Spark's ALS solves it: confidence 1 + α·r with r the
    weight of the action, λ = regParam times the number of the user's interactions.
    """
    if model.factors is None or model.gram is None or model.norms is None:
        return None
    known = state.items < len(model)
    items, weights = state.items[known], state.weights[known]
    rated = model.norms[items] > 0
    extra = model.als_alpha * weights[rated].astype(np.float64)
    if not len(extra):
        return None
    rows, ridge = as_items(items[rated]), model.als_reg * len(extra)
    if len(rows) <= _WOODBURY_UP_TO and model.spectrum is not None:
        return woodbury(model.spectrum, model.factors, rows, extra, ridge)
    factors = model.factors[rows].astype(np.float64)
    left = model.gram + (factors * extra[:, None]).T @ factors
    left.flat[:: len(left) + 1] += ridge
    return np.linalg.solve(left, factors.T @ (1.0 + extra)).astype(np.float32)


def tower_user(model: Model, state: UserState) -> FloatArray | None:
    """The user tower's output (d + 1,); None without towers or a known item in the history.

    `state` has times at the model's resolution.
    """
    if model.towers is None:
        return None
    return model.towers.user(state.items, state.weights, state.times_ms, state.now_ms)


def ncf_user(model: Model, state: UserState) -> FloatArray | None:
    """The user's vectors of NCF (d + 1 + h,); None without NCF or a known item in the history.

    `state` has times at the model's resolution.
    """
    if model.ncf is None:
        return None
    return model.ncf.user(state.items, state.weights, state.times_ms, state.now_ms)


def content_user(content: FloatArray, recent: IntArray) -> FloatArray | None:
    """(d,) the content (n, d) of the items `recent`, newest first, an older one weighted less (1,
    1/2, 1/3, …); None where none of them has any."""
    recent = recent[recent < len(content)]
    weights = np.arange(1, len(recent) + 1, dtype=np.float32)[:, None]
    user = (content[recent] / weights).sum(axis=0)
    return user if user.any() else None

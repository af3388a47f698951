"""Builds snapshots from the feeds in a background thread: every second if something changed.

A snapshot that takes long to build is rebuilt less often: building takes at most 5 % of the time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import BoolArray, Float64Array, IntArray
from afterclick.events import MAX_LEAD_MS
from afterclick.features import TrendView
from afterclick.io.background import BackgroundLoop
from afterclick.live_transitions import NewAccountLimits
from afterclick.model import Model
from afterclick.quarantine import LimitedTrends, QuarantineLimits, apply_limits
from afterclick.state import StarCounts
from afterclick.transitions import TransitionGraph
from afterclick.trends import HALF_LIVES_MS, TrendTable
from serving.state.ann_search import ColdStartContent
from serving.state.item_catalogue import Catalogue, Versioned
from serving.state.live_transitions import ModelTransitions, RecentContacts
from serving.state.live_trends import TrendState
from serving.state.loaded_models import LoadedModel
from serving.state.snapshot import (
    MAX_LISTED,
    NO_RULES,
    ActiveRules,
    ItemLookup,
    ServingSnapshot,
    badges,
    best,
    rating_factor,
)

INTERVAL_S = 1.0
"""Between two snapshots, at least."""
INTERVAL_PER_BUILD = 20.0
"""Seconds between two snapshots, at least, per second of building."""
MAX_AGE_S = 30.0
"""Rebuild after this long without a change: trends decay."""
FREEZE_GROWTH = 1.25
"""Growth of the catalogue after which its objects are excluded from garbage collections again."""
TIE_WEIGHT = 1e-9
"""The model's popularity orders items of equal counts."""
_generations = count(1)
_NOT_POSITIVE = StarCounts._fields.index("not_positive")


class RuleSource(Protocol):
    """Supplies the business rules in force."""

    def state(self) -> tuple[str, ...]:
        """Ids of the rules in force now."""
        ...

    def active(self, lookup: ItemLookup, trend_score: Float64Array) -> ActiveRules:
        """The rules in force for the items of a snapshot; `trend_score` (m,) orders them."""
        ...


class NoRules:
    """A rule source without rules."""

    def state(self) -> tuple[str, ...]:
        return ()

    def active(self, lookup: ItemLookup, trend_score: Float64Array) -> ActiveRules:
        return NO_RULES


@dataclass(frozen=True)
class SnapshotSources:
    """What snapshots are built from."""

    trends: TrendState
    catalogue: Catalogue
    rules: RuleSource = field(default_factory=NoRules)
    limits: QuarantineLimits = field(default_factory=QuarantineLimits)
    clock_ms: Callable[[], float] = lambda: time.time() * 1000
    """The present; also without events trends decay."""
    hides_unknown: Callable[[], bool] = lambda: False
    """Whether items that are not in the catalogue are hidden now."""
    contacts: RecentContacts | None = None
    """Update the transition graph; None: it stays that of the model."""

    def now_ms(self) -> float:
        """The clock, or the newest event if it is slightly ahead of it.

        A replay never leads: its events end at its first start.
        """
        clock_ms = self.clock_ms()
        return max(clock_ms, min(self.trends.table.newest_ms, clock_ms + MAX_LEAD_MS))


class ItemIndex:
    """Item ids and their indices: the model's items first, then later ones. Only grows."""

    def __init__(self, model: Model | None) -> None:
        self._of_model = {} if model is None else model.index
        self._later: dict[str, int] = {}
        self.ids = list(self._of_model)

    def find(self, item_id: str) -> int | None:
        """The index of an item, or None."""
        index = self._of_model.get(item_id)
        return self._later.get(item_id) if index is None else index

    def add(self, item_id: str) -> int:
        """The index of an item; a new item gets the next one."""
        index = self.find(item_id)
        if index is None:
            self.ids.append(item_id)
            index = self._later[item_id] = len(self.ids) - 1
        return index

    def add_all(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """The index of each item."""
        return np.fromiter(map(self.add, item_ids), np.int64)

    def find_all(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """The index of each item, −1 for one that has none."""
        found = map(self.find, item_ids)
        return np.fromiter((-1 if index is None else index for index in found), np.int64)


class _TrendRows:
    """The item index of each row of a TrendTable, −1 for a row left out. Looks up new rows only."""

    def __init__(self) -> None:
        self._state: tuple[object, ...] = ()
        self.index: NDArray[np.int64] = np.empty(0, np.int64)

    def align(self, table: TrendTable, items: ItemIndex, catalogue_version: int | None) -> None:
        """Give each new row an index; with a catalogue version, only rows of items that have one.

        Rows left out are looked up again when the catalogue changes.
        """
        if not self._state or table is not self._state[0]:
            self.index = np.empty(0, np.int64)
        elif catalogue_version != self._state[1]:
            self.index = self.index[: _first_left_out(self.index)]
        self._state = table, catalogue_version
        new = table.ids[len(self.index) :]
        if not new:
            return
        known = items.add_all(new) if catalogue_version is None else items.find_all(new)
        self.index = np.concatenate([self.index, known])


def _first_left_out(index: NDArray[np.int64]) -> int:
    left_out = np.flatnonzero(index < 0)
    return int(left_out[0]) if len(left_out) else len(index)


class _Totals(NamedTuple):
    """All-time counts of rows of the trends."""

    counts: NDArray[np.int64]
    """(r,) interactions"""
    stars: IntArray
    """(r, 4) `StarCounts`"""


class SnapshotBuilder:
    """Builds the snapshots of one model. Item indices stay valid from one to the next."""

    def __init__(self, sources: SnapshotSources, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._sources = sources
        self._items, self._rows = ItemIndex(loaded.model), _TrendRows()
        self._catalogue_rows = np.empty(0, np.int32)
        self._model_newest_first = _newest_first(loaded.model)
        self._shown: Versioned[BoolArray | None] = Versioned()
        self._rules: Versioned[ActiveRules] = Versioned()
        self._cold_start = ColdStartContent(loaded.model, loaded.content_search)
        self.transitions = ModelTransitions(loaded.model, loaded.learned)

    def build(self) -> ServingSnapshot:
        """A new snapshot of the current state of the feeds."""
        trends, catalogue, items = self._sources.trends, self._sources.catalogue, self._items
        hides = self._sources.hides_unknown()
        known_version = self._add_catalogue() if hides else None
        with trends.lock:
            table = trends.table
            now_ms = self._sources.now_ms()
            (votes, established), counts = table.both(now_ms), table.counts.copy()
            stars = table.stars.copy()
            approved = np.zeros(len(table), bool)
            approved[[row for i in trends.approved if (row := table.find(i)) is not None]] = True
            self._rows.align(table, items, known_version)
        version = self._add_catalogue()
        kept = self._rows.index >= 0
        limits, approved_rows = self._sources.limits, np.flatnonzero(approved[kept])
        limited = apply_limits(votes[kept], established[kept], limits, approved_rows)
        new_accounts = NewAccountLimits(limited.established_share, limits)
        graph = self._transition_graph(hides, now_ms, new_accounts)
        self._cold_start.update(items.ids, catalogue)
        shown = self._shown_items(version) if hides else None
        totals = _Totals(counts[kept], stars[kept])
        snapshot = self._snapshot(limited, totals, now_ms, version, shown)
        return replace(snapshot, transitions=graph)

    def _transition_graph(
        self, hides: bool, now_ms: float, limits: NewAccountLimits
    ) -> TransitionGraph | None:
        """The graph of model and contacts. Items that it brings get an index, unless hidden."""
        contacts, model, items = self._sources.contacts, self.loaded.model, self._items
        if contacts is None:
            return None if model is None else model.transitions
        find_all = items.find_all if hides else items.add_all
        return self.transitions.update(contacts, find_all, now_ms, limits)

    def _add_catalogue(self) -> int:
        """Give every new item of the catalogue an index. Returns the catalogue's version."""
        catalogue = self._sources.catalogue
        version = catalogue.version
        new = catalogue.ids[len(self._catalogue_rows) :]
        rows = np.array([self._items.add(item_id) if item_id else -1 for item_id in new], np.int32)
        self._catalogue_rows = np.concatenate([self._catalogue_rows, rows])
        return version

    def _shown_items(self, version: int) -> BoolArray | None:
        """(m,) the items of the catalogue; None: all."""
        ids, known = self._items.ids, self._sources.catalogue

        def compute() -> BoolArray | None:
            shown = np.fromiter((item_id in known for item_id in ids), bool, len(ids))
            return None if shown.all() else shown

        return self._shown.get((version, len(ids)), compute)

    def _snapshot(
        self,
        limited: LimitedTrends,
        totals: _Totals,
        now_ms: float,
        version: int,
        shown: BoolArray | None,
    ) -> ServingSnapshot:
        model, m = self.loaded.model, len(self._items.ids)
        rows = self._rows.index[self._rows.index >= 0]
        decayed_counts, all_counts = np.zeros((m, limited.values.shape[1])), np.zeros(m, np.int64)
        decayed_counts[rows], all_counts[rows] = limited.values, totals.counts
        stars = np.zeros((m, totals.stars.shape[1]), np.int32)
        stars[rows] = totals.stars
        first_seen, ties = np.full(m, np.nan), np.zeros(m)
        popularity = (all_counts - stars[:, _NOT_POSITIVE]).astype(np.float64)
        popularity[rows] *= limited.retained_share
        if model is not None:
            first_seen[: len(model)] = model.first_seen_ms
            ties[: len(model)] = model.popularity * TIE_WEIGHT
        if shown is not None:
            for values in (decayed_counts, all_counts, stars, popularity, ties):
                values[~shown] = 0  # hidden items take no room in any list
        popularity *= rating_factor(stars)
        view = TrendView.of(decayed_counts, first_seen, weights=limited.weights)
        trend_score = np.log2(1.0 + view.trend_score)
        lookup = ItemLookup(self._items.find, self._catalogue_rows, m)
        return ServingSnapshot(
            loaded=self.loaded,
            catalogue=self._sources.catalogue,
            ids=self._items.ids,
            view=view,
            decayed_counts=decayed_counts,
            counts=all_counts,
            stars=stars,
            trend_score=trend_score,
            popularity=popularity,
            popular=best(popularity + ties, MAX_LISTED),
            trending=best(trend_score, MAX_LISTED),
            top_by_half_life={
                name: best(decayed_counts[:, i], MAX_LISTED) for i, name in enumerate(HALF_LIVES_MS)
            },
            newest_first=self._newest_first(m, shown),
            badges=badges(decayed_counts, first_seen, now_ms),
            now_ms=now_ms,
            quarantined=_int32(rows[limited.quarantined]),
            established_share=limited.established_share,
            new_account_weight=limited.new_account_weight,
            content=self._cold_start.content,
            content_search=self._cold_start.search,
            rules=self._active_rules(lookup, trend_score),
            catalogue_version=version,
            generation=next(_generations),
            lookup=lookup,
            shown=shown,
        )

    def _newest_first(self, m: int, shown: BoolArray | None) -> IntArray:
        newer = np.arange(m - 1, len(self._model_newest_first) - 1, -1, dtype=np.int32)
        items = np.concatenate([newer, self._model_newest_first])
        return items if shown is None else items[shown[items]]

    def _active_rules(self, lookup: ItemLookup, trend_score: Float64Array) -> ActiveRules:
        """The rules in force; the same object until rules, catalogue or items change."""
        source, catalogue = self._sources.rules, self._sources.catalogue
        version = source.state(), catalogue.version, len(trend_score)
        return self._rules.get(version, lambda: source.active(lookup, trend_score))


class SnapshotStore:
    """Keeps `current` up to date, and one snapshot for each model that an experiment uses."""

    def __init__(self, sources: SnapshotSources, loaded: LoadedModel) -> None:
        self._sources = sources
        self._builder = SnapshotBuilder(sources, loaded)
        self._next = loaded
        self._experiment_models: Mapping[str, LoadedModel] = {}
        self._builders: dict[str, SnapshotBuilder] = {}
        self._snapshots: dict[str, ServingSnapshot] = {}
        self._built_of: tuple[object, ...] | None = None
        self._built_at = 0.0
        self._frozen_items = 0
        self._loop = BackgroundLoop("snapshot-builder", self._refresh, INTERVAL_S)
        self.start, self.stop, self.wake = self._loop.start, self._loop.stop, self._loop.wake
        self.heartbeat = self._loop.heartbeat
        self.current = self.build()

    @property
    def transition_sizes(self) -> tuple[int, int]:
        """Items with live counts in the transition graph, and their neighbours."""
        return self._builder.transitions.sizes

    def of(self, version: str | None) -> ServingSnapshot:
        """The snapshot of a model version; the current one by default, or if it is not loaded."""
        return self.current if version is None else self._snapshots.get(version, self.current)

    def use(self, loaded: LoadedModel) -> None:
        """Serve another model as soon as its snapshot is built. Thread-safe."""
        self._next = loaded
        self.wake()

    def use_in_experiments(self, loaded: Mapping[str, LoadedModel]) -> None:
        """Keep snapshots of exactly these models for experiments. Thread-safe."""
        self._experiment_models = dict(loaded)
        self.wake()

    def build(self) -> ServingSnapshot:
        """A new snapshot of the serving model; also rebuilds those of experiments."""
        models = self._experiment_models
        self._builders = {
            version: self._builders.get(version) or SnapshotBuilder(self._sources, loaded)
            for version, loaded in models.items()
        }
        self._snapshots = {v: builder.build() for v, builder in self._builders.items()}
        if self._builder.loaded is not self._next:
            self._builder = SnapshotBuilder(self._sources, self._next)
        return self._builder.build()

    def _refresh(self) -> float:
        """Build a snapshot if something changed. Returns the seconds until the next one."""
        contacts = self._sources.contacts
        state = (
            self._sources.trends.changes,
            self._sources.catalogue.version,
            self._next.version,
            tuple(self._experiment_models),
            self._sources.rules.state(),
            self._sources.hides_unknown(),
            contacts.version if contacts is not None else None,
        )
        if state == self._built_of and time.monotonic() - self._built_at < MAX_AGE_S:
            return INTERVAL_S
        is_new_model = self._built_of is None or state[2] != self._built_of[2]
        began = time.monotonic()
        self.current = self.build()
        self._built_of, self._built_at = state, time.monotonic()
        items = len(self._sources.catalogue)
        if is_new_model or items > FREEZE_GROWTH * self._frozen_items:
            # objects of models and items live long: a collection of them would stall requests
            gc.freeze()
            self._frozen_items = items
        return max(INTERVAL_S, INTERVAL_PER_BUILD * (self._built_at - began))


def _newest_first(model: Model | None) -> IntArray:
    """The items of a model by their first interaction."""
    if model is None:
        return np.empty(0, np.int32)
    seen = np.nan_to_num(model.first_seen_ms, nan=-np.inf)
    return np.argsort(-seen, kind="stable").astype(np.int32)


def _int32(items: NDArray[np.int64]) -> IntArray:
    return items.astype(np.int32)

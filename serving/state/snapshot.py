"""What every request looks at: one immutable view of model, trends and catalogue, swapped whole.

A request takes `snapshots.current` once and so answers from one model version and one moment. A builder
thread makes a new snapshot every second where something changed, and at once when a model arrives.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from afterclick.arrays import Float64Array, IntArray
from afterclick.features import TrendView
from afterclick.model import ItemContent
from afterclick.quarantine import LimitedTrends, QuarantineLimits, apply_limits
from afterclick.retrieval import Search
from afterclick.trends import HALF_LIVES_MS, TrendTable
from serving.state.ann_search import ColdStartContent
from serving.state.badges import Badges, badges
from serving.state.item_catalogue import Catalogue
from serving.state.live_trends import TrendFeed
from serving.state.loaded_models import LoadedModel

log = structlog.get_logger()
KEPT = 1000
"""How far down the popular and trending lists are kept."""
NEWEST = 30
"""New items that exploration may bring."""
PAUSE_S = 1.0
"""Between two snapshots, at least."""
SHARE = 20.0
"""A world that takes long to build is built less often: at most a twentieth of the time."""

_NUMBERS = count(1)


@dataclass(frozen=True)
class Pin:
    """An item and the place it is given, from 0."""

    place: int
    item: int


@dataclass(frozen=True, eq=False)
class ActiveRules:
    """The rules in force, in the item indices of one snapshot."""

    excluded: IntArray = field(default_factory=lambda: np.empty(0, np.int32))
    """Items that are in no list."""
    boosted: IntArray = field(default_factory=lambda: np.empty(0, np.int32))
    """(b,) items whose score changes, each once."""
    amounts: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """(b,) what it changes by: boosts less buries."""
    pins: tuple[Pin, ...] = ()
    """Each place and each item once, in the order of the places."""
    wanted: IntArray = field(default_factory=lambda: np.empty(0, np.int32))
    """Items that are ranked although no source brings them: pinned, and the hottest of those that gain."""

    def amount_of(self, items: IntArray) -> NDArray[np.float64]:
        """(c,) what the rules add to the score of each item."""
        added = np.zeros(len(items))
        if len(self.boosted):
            at = np.searchsorted(self.boosted, items)
            at[at == len(self.boosted)] = 0
            hit = self.boosted[at] == items
            added[hit] = self.amounts[at[hit]]
        return added


NO_RULES = ActiveRules()


class RuleSource(Protocol):
    """Supplies the business rules in force."""

    def state(self) -> tuple[str, ...]:
        """Ids of the rules in force now."""
        ...

    def active(self, find: dict[str, int], heat: Float64Array) -> ActiveRules:
        """The rules in force for the items of `find`; `heat` (m,) orders them."""
        ...


class NoRules:
    """A rule source without rules."""

    def state(self) -> tuple[str, ...]:
        return ()

    def active(self, find: dict[str, int], heat: Float64Array) -> ActiveRules:
        return NO_RULES


@dataclass
class ItemIndex:
    """Item ids and their indices: the model's rows first, then items that came later. Only ever grows."""

    ids: list[str] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)

    def add(self, item_id: str) -> int:
        """The index of an item, a new one if it has none."""
        at = self.index.get(item_id)
        if at is None:
            self.ids.append(item_id)
            at = self.index[item_id] = len(self.ids) - 1
        return at

    def add_all(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """The index of each item."""
        return np.fromiter(map(self.add, item_ids), np.int64)


@dataclass
class _Rows:
    """Where the rows of one TrendTable stand in the item space. Only new rows are looked up."""

    table: TrendTable
    at: NDArray[np.int64]

    def follow(self, space: ItemIndex) -> None:
        new = self.table.ids[len(self.at) :]
        if new:
            self.at = np.concatenate([self.at, space.add_all(new)])


@dataclass(frozen=True, eq=False)
class ServingSnapshot:
    """All that ranking needs besides the user. m items, in the order of `ids`."""

    loaded: LoadedModel
    ids: list[str]
    view: TrendView
    values: Float64Array
    """(m, H) decayed sums, as the guard against pushed items leaves them."""
    counts: NDArray[np.int64]
    """(m,) interactions of positive weight, all time."""
    heat: Float64Array
    """(m,) log2(1 + the decayed sums mixed): the trend of an item in one number."""
    popularity: Float64Array
    """(m,) `counts`; of those of items in quarantine a part."""
    popular: IntArray
    """The most popular items of all time, best first."""
    trending: IntArray
    """The items of the greatest heat."""
    now_ms: float
    _index: dict[str, int]
    held: IntArray
    """Items in quarantine: of their trends only what established users stand for."""
    established_share: float
    """The share of an item's votes that established users usually have; 0 where it is not known."""
    trust: Float64Array
    """(H,) what a new account's vote counts, by half-life: 1 while they are no more than usual."""
    content: ItemContent | None = None
    """What all items say of themselves; None where the model has no content."""
    content_search: Search | None = None
    """The items whose content is near a vector."""
    rules: ActiveRules = NO_RULES
    """The business rules in force."""
    catalogue_version: int = 0
    """Counts the changes of the catalogue that this snapshot knows of."""
    number: int = 0
    """Each snapshot of a process has its own."""

    @cached_property
    def by_window(self) -> dict[str, IntArray]:
        """The best items of each half-life."""
        return {name: best(self.values[:, i], KEPT) for i, name in enumerate(HALF_LIVES_MS)}

    @cached_property
    def badges(self) -> Badges:
        """What is true of items for everybody just now, by index; most have none."""
        return badges(self.values, self.view.first_seen_ms, self.now_ms)

    @cached_property
    def newest(self) -> IntArray:
        """The items that came last, which may not have been seen by anybody yet."""
        return np.arange(max(0, len(self.heat) - NEWEST), len(self.heat), dtype=np.int32)

    @cached_property
    def latest(self) -> IntArray:
        """Every item, the newest first: those that came after the model, then by their first interaction."""
        m, model = len(self.heat), self.loaded.model
        known = len(model) if model is not None else 0
        after = np.arange(m - 1, known - 1, -1)
        if model is None:
            return after.astype(np.int32)
        seen = np.nan_to_num(model.first_seen_ms, nan=-np.inf)
        return np.concatenate([after, np.argsort(-seen, kind="stable")]).astype(np.int32)

    def find(self, item_id: str) -> int | None:
        """The index of an item in this world's arrays, or None."""
        at = self._index.get(item_id)
        return at if at is not None and at < len(self.heat) else None

    def indices(self, item_ids: Iterable[str]) -> IntArray:
        """Indices of the items that this snapshot knows."""
        found = [at for at in map(self.find, item_ids) if at is not None]
        return np.array(found, np.int32)


class _Builder:
    """Makes the snapshots of one model after another; what they are indexed by stays while the model does."""

    def __init__(
        self, feed: TrendFeed, catalogue: Catalogue, rules: RuleSource, bounds: QuarantineLimits
    ) -> None:
        self._feed, self._catalogue, self._rules, self._bounds = feed, catalogue, rules, bounds
        self._space, self._space_of = ItemIndex(), ""
        self._rows = _Rows(feed.table, np.empty(0, np.int64))
        self._listed = -1
        self._late = ColdStartContent(None, None)

    def build(self, loaded: LoadedModel) -> ServingSnapshot:
        """A new snapshot from what the feeds hold now."""
        self._adopt(loaded)
        with self._feed.lock:
            table = self._feed.table
            now_ms = max(time.time() * 1000, table.newest_ms)
            (votes, established), counts = table.both(now_ms), table.counts.copy()
            lifted = [row for item in self._feed.lifted if (row := table.find(item)) is not None]
            if table is not self._rows.table:
                self._rows = _Rows(table, np.empty(0, np.int64))
            self._rows.follow(self._space)
        if self._catalogue.version != self._listed:
            self._listed = self._catalogue.version
            self._space.add_all(list(self._catalogue.items))
        guarded = apply_limits(votes, established, self._bounds, np.array(lifted, np.intp))
        snapshot = _snapshot_of(loaded, self._space, self._rows.at, guarded, counts, now_ms)
        self._late.follow(self._space.ids, self._catalogue)
        content, search = self._late.content, self._late.search
        rules = self._rules.active(self._space.index, snapshot.heat)
        return replace(
            snapshot,
            content=content,
            content_search=search,
            rules=rules,
            catalogue_version=self._listed,
            number=next(_NUMBERS),
        )

    def _adopt(self, loaded: LoadedModel) -> None:
        """Begin a new item space where the model is another: its rows come first."""
        if loaded.version != self._space_of:
            model = loaded.model
            self._space = ItemIndex(list(model.index), dict(model.index)) if model else ItemIndex()
            self._space_of, self._listed = loaded.version, -1
            self._rows = _Rows(self._feed.table, np.empty(0, np.int64))
            self._late = ColdStartContent(loaded.model, loaded.content_search)


class SnapshotStore:
    """Keeps `current` current, and beside it a snapshot for each model that an arm of an experiment asks for."""

    def __init__(
        self,
        feed: TrendFeed,
        catalogue: Catalogue,
        loaded: LoadedModel,
        rules: RuleSource | None = None,
        bounds: QuarantineLimits | None = None,
    ) -> None:
        self._feed, self._catalogue = feed, catalogue
        self._bounds = bounds or QuarantineLimits()
        self._rules = rules or NoRules()
        self._next = loaded
        self._builder = self._new_builder()
        self._beside: Mapping[str, LoadedModel] = {}
        self._builders: dict[str, _Builder] = {}
        self._snapshots: dict[str, ServingSnapshot] = {}
        self._wake, self._stop = threading.Event(), threading.Event()
        self._built_of: tuple[object, ...] | None = None
        self._built_at = 0.0
        self._pause_s = PAUSE_S
        self._thread: threading.Thread | None = None
        self.current = self.build()

    def of(self, version: str | None) -> ServingSnapshot:
        """The snapshot of a model; the current one where that is not loaded, or none is named."""
        return self.current if version is None else self._snapshots.get(version, self.current)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="world-builder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread:
            self._thread.join(3.0)

    def use(self, loaded: LoadedModel) -> None:
        """Serve another model as soon as its snapshot is built. Called from the thread that loaded it."""
        self._next = loaded
        self._wake.set()

    def use_beside(self, loaded: Mapping[str, LoadedModel]) -> None:
        """Have these models, too, and no others, for the arms that ask for them."""
        self._beside = dict(loaded)
        self._wake.set()

    def wake(self) -> None:
        """Look at once whether there is something new."""
        self._wake.set()

    def build(self) -> ServingSnapshot:
        """A new snapshot of the model that serves, and of those beside it."""
        beside = self._beside
        self._builders = {
            version: self._builders.get(version) or self._new_builder() for version in beside
        }
        self._snapshots = {
            version: self._builders[version].build(loaded) for version, loaded in beside.items()
        }
        return self._builder.build(self._next)

    def _new_builder(self) -> _Builder:
        return _Builder(self._feed, self._catalogue, self._rules, self._bounds)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(self._pause_s)
            self._wake.clear()
            state = (
                self._feed.changes,
                self._catalogue.version,
                self._next.version,
                tuple(self._beside),
                self._rules.state(),
            )
            swapped = self._built_of is None or state[2] != self._built_of[2]
            if state == self._built_of and time.monotonic() - self._built_at < 30:
                continue
            began = time.monotonic()
            try:
                self.current = self.build()
            except Exception:
                log.exception("no new world; the old one stays")
                continue
            self._built_of, self._built_at = state, time.monotonic()
            if swapped:
                gc.freeze()  # what a model brings lives long: the collector need not walk through it
            self._pause_s = max(PAUSE_S, SHARE * (self._built_at - began))


def _snapshot_of(
    loaded: LoadedModel,
    space: ItemIndex,
    at: NDArray[np.int64],
    guarded: LimitedTrends,
    counts: NDArray[np.int64],
    now: float,
) -> ServingSnapshot:
    m = len(space.ids)
    wide, many = np.zeros((m, guarded.values.shape[1])), np.zeros(m, np.int64)
    wide[at], many[at] = guarded.values, counts
    first_seen = np.full(m, np.nan)
    model = loaded.model
    popularity = many.astype(np.float64)
    popularity[at] *= guarded.retained_share
    ties = np.zeros(m)
    if model is not None:
        first_seen[: len(model)] = model.first_seen_ms
        ties[: len(model)] = model.popularity * 1e-9  # counts decide; the model breaks ties
    view = TrendView.of(wide, first_seen, weights=guarded.weights)
    heat = np.log2(1.0 + view.trend_score)
    return ServingSnapshot(
        loaded=loaded,
        ids=space.ids,
        view=view,
        values=wide,
        counts=many,
        heat=heat,
        popularity=popularity,
        popular=best(popularity + ties, KEPT),
        trending=best(heat, KEPT),
        now_ms=now,
        _index=space.index,
        held=at[guarded.quarantined].astype(np.int32),
        established_share=guarded.established_share,
        trust=guarded.new_account_weight,
    )


def best(scores: Float64Array, count: int) -> IntArray:
    """Indices of the highest positive scores, best first."""
    count = min(count, len(scores))
    if not count:
        return np.empty(0, np.int32)
    top = np.argpartition(-scores, count - 1)[:count]
    top = top[scores[top] > 0]
    return top[np.argsort(-scores[top], kind="stable")].astype(np.int32)

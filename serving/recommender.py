"""The request path: request → user state → candidates → rank → rerank → response.

reads   redis  {u:<user>}:history, in one round trip; everything else is in memory

Lists whose work grows with the catalogue are made in one worker thread, so that the event loop
serves the others meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Final, Self, TypeVar

import numpy as np
import orjson

from afterclick import events
from afterclick.arrays import IntArray
from afterclick.errors import Unavailable
from afterclick.events import Action
from afterclick.io.connections import Slots
from afterclick.retrieval import REDUCED_LIMITS, not_in
from afterclick.settings import Settings
from afterclick.shown_items import ShownItems
from afterclick.signals import Signals
from afterclick.state import HistoryEntry, effective
from afterclick.trends import DAY_MS
from afterclick.user_vectors import UserState
from serving import dislikes
from serving.dislikes import DislikePenalty
from serving.eligibility import CatalogueFilters, Eligibility
from serving.explain import attributions
from serving.request import CALLER, RecommendationRequest, RequestUser, cursor_after
from serving.rerank import rerank
from serving.response_cache import MAX_RESPONSE_BYTES, Recommendation, RenderedList, ResponseCache
from serving.state.catalogue_query import search
from serving.state.history import HistorySource, Rows, entries
from serving.state.item_catalogue import Catalogue
from serving.state.live_trends import PositionWaiters, TrendState
from serving.state.snapshot import ServingSnapshot
from serving.state.snapshot_builder import SnapshotStore
from serving.tiers import (
    LAST_RESORT,
    RankedList,
    RankingTier,
    TierContext,
    grows_with_catalogue,
    tiers_for,
)

T = TypeVar("T")
MAX_WAITING: Final = 64
"""Calls of the worker thread that may wait: at 20 ms each the last one takes 1.3 s."""
MAX_WAITING_PER_CALLER: Final = 32
"""The rest is left for other callers."""
_IMPRESSION_FIELDS = ("item_id", "score", "source")


@dataclass(frozen=True)
class RecommenderConfig:
    """Settings of the request path."""

    signals: Signals
    """Weight of each action in the user state."""
    cache_ttl_s: float = 0.0
    """How long a personalised list is reused while its user does nothing."""
    overloaded: Callable[[float], bool] = lambda _: False
    """Whether to shed load for a request begun at this `time.monotonic()`."""
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    """For exploration."""
    clock: Callable[[], float] = time.monotonic
    """Measures the age of cached lists."""
    dislike_weight: float = 0.0
    """Penalty for items similar to dislikes, in standard deviations of the scores."""
    repeat_purchase_days: Mapping[str, float] = field(default_factory=dict)
    """Category → days after which a bought item may be shown again."""
    frequency_cap: int = 0
    """Times that a user is shown an item within a day, at most; 0: no limit."""
    cache_bytes: int = MAX_RESPONSE_BYTES
    """Of cached lists, at most."""
    clock_ms: Callable[[], float] = lambda: time.time() * 1000
    """The present of user states, in event time."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """What an installation is set to."""
        serving = settings.serving
        return cls(
            settings.stream.signals,
            serving.cache_ttl_s,
            dislike_weight=serving.dislike_weight,
            repeat_purchase_days=serving.repeat_purchase_days,
            frequency_cap=serving.frequency_cap,
            cache_bytes=MAX_RESPONSE_BYTES // serving.workers,
        )


class Recommender:
    """Makes lists, also without dependencies; `degraded` reports a missing one."""

    def __init__(
        self,
        store: HistorySource,
        snapshots: SnapshotStore,
        trends: TrendState,
        waiters: PositionWaiters,
        config: RecommenderConfig,
    ) -> None:
        self._store, self._snapshots, self._trends, self._waiters = (
            store,
            snapshots,
            trends,
            waiters,
        )
        self._config = config
        self._cache = ResponseCache(config.cache_ttl_s, config.clock, config.cache_bytes)
        self._worker = ThreadPoolExecutor(1, "catalogue")
        self.waiting = Slots(caller=MAX_WAITING_PER_CALLER, total=MAX_WAITING)
        """Calls of the worker, the running one included."""
        self.filters = CatalogueFilters()
        """For the worker; for the event loop only where nothing is asked for."""
        self._shown = ShownItems()

    def on_shown(self, recommendation: Recommendation) -> None:
        """Count a list that its user has seen, for the frequency cap and the ranker."""
        user_id = recommendation.body["user_id"]
        if user_id and self._counts_shown(self._snapshots.current):
            rows = orjson.loads(recommendation.rendered.impression_rows)
            self._shown.put(user_id, [row["item_id"] for row in rows], self._config.clock_ms())

    def _counts_shown(self, snapshot: ServingSnapshot) -> bool:
        """Whether lists depend on what the user was shown."""
        return self._config.frequency_cap > 0 or "shown_today" in snapshot.loaded.ranker.used

    def forget(self, user_ids: Container[str]) -> None:
        """Drop the cached lists of these users, and what they were shown."""
        self._cache.forget(user_ids)
        self._shown.forget(user_ids)

    async def recommend(self, request: RecommendationRequest) -> Recommendation:
        """The list for a user. Raises Unavailable if too many lists wait for the worker.

        `degraded`: the history was unavailable. `reduced`: load was shed, fewer candidates were
        ranked.
        """
        fresh = None
        if request.after is not None:
            fresh = await self._waiters.reached(request.after, self._trends.positions)
        began = time.monotonic()
        as_of = dict(self._trends.positions)  # before the history, which is at least as new
        try:
            rows, degraded = (
                await self._store.rows(request.user_id) if request.user_id else [],
                False,
            )
        except Unavailable:
            rows, degraded = [], True
        snapshot = self._snapshots.of(request.options.model)
        shown: Mapping[str, int] = {}
        if request.user_id and self._counts_shown(snapshot):
            shown = self._shown.counts(request.user_id, self._config.clock_ms())
        if shown and self._config.frequency_cap:
            capped = sorted(i for i, n in shown.items() if n >= self._config.frequency_cap)
            request = replace(request, exclude=(*request.exclude, *capped))
        personal = bool(rows or request.items)
        reduced = personal and not request.never_shed and self._config.overloaded(began)
        cacheable = not request.options.explore
        rendered = self._cache.get(request, rows, snapshot, reduced) if cacheable else None
        cached = rendered is not None
        if rendered is None:
            signals, now_ms = self._config.signals, self._config.clock_ms()
            user = request_user(request, rows, snapshot, signals, now_ms)
            if shown:
                user = with_shown(user, snapshot, shown)
            if self._config.repeat_purchase_days and len(user.state.purchased):
                user = with_repeat_purchases(user, snapshot, self._config.repeat_purchase_days)
            if grows_with_catalogue(request, snapshot, user):
                rendered = await self.in_worker(self._make, request, user, snapshot, reduced)
            else:
                rendered = self._make(request, user, snapshot, reduced)
            if cacheable:
                self._cache.put(request, rows, snapshot, rendered)
        body = {
            "user_id": request.user_id or None,
            "source": rendered.source,
            "degraded": degraded,
            "reduced": rendered.reduced,
            "fresh": fresh,
            "model_version": snapshot.loaded.version or None,
            "impression_id": events.new_id(),
            "as_of": as_of,
            "items": orjson.Fragment(rendered.items),
        }
        if request.page.paginate:
            body["next"] = rendered.next
        return Recommendation(body, rendered, request.options.label, cached, request.context)

    async def search(self, query: str, n: int) -> list[str]:
        """Ids of the items with a word for each prefix of the query, most chosen first."""
        snapshot = self._snapshots.current
        popular = [snapshot.ids[item] for item in snapshot.popular.tolist()]
        catalogue, interactions = snapshot.catalogue, snapshot.interactions
        return await self.in_worker(search, catalogue, query, n, interactions, popular)

    async def restricted(
        self,
        snapshot: ServingSnapshot,
        category: str | None,
        conditions: Sequence[str],
        select: Callable[[IntArray | None], T],
    ) -> T:
        """What `select` makes of the items of a category that meet conditions; of None without."""
        if category is None and not conditions:
            return select(None)
        return await self.in_worker(
            lambda: select(self.filters.allowed(snapshot, category, conditions))
        )

    async def in_worker(self, work: Callable[..., T], *args: Any) -> T:
        """Call `work` in the one thread for what grows with the catalogue; calls wait in turn.

        Raises Unavailable if too many calls wait, of this caller or of all.
        """
        keys = {"caller": CALLER.get(), "total": ""}
        if self.waiting.take(**keys) is not None:
            raise Unavailable("too many searches and lists by catalogue fields at a time")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, work, *args)
        finally:
            self.waiting.release(**keys)

    def close(self) -> None:
        """End the thread; calls that wait are cancelled."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _make(
        self,
        request: RecommendationRequest,
        user: RequestUser,
        snapshot: ServingSnapshot,
        reduced: bool,
    ) -> RenderedList:
        """Eligible candidates of the best tier → rank → rerank → render."""
        allowed = self.filters.allowed(snapshot, request.category, request.filters)
        eligibility = Eligibility.of(snapshot, request, user.state.seen, allowed)
        has_dislikes = self._config.dislike_weight > 0 and dislikes.count_in(request, user.state)
        if has_dislikes:
            eligibility = eligibility.with_pool(request.page.offset + request.n + dislikes.POOL)
        tiers = tiers_for(request, snapshot, user, REDUCED_LIMITS if reduced else None)
        for tier, eligible in _attempts(tiers, eligibility):
            context = TierContext(snapshot, user, eligible)
            candidates = eligible.filter(tier.retrieve(context))
            candidates = eligible.fill(candidates, snapshot, tier.fill)
            if len(candidates.items):
                break
        ranked, added = tier.rank(context, candidates), {}
        if has_dislikes:
            penalty = DislikePenalty.of(snapshot, ranked, self._config.dislike_weight)
            ranked = replace(ranked, score_fn=penalty.after(ranked.score_fn))
            added[dislikes.NAME] = penalty.added(user.state, ranked.items)
        if eligible.pool_size > request.n:
            ranked = rerank(ranked, snapshot, request, self._config.rng, added)
        causes = None
        if request.explain and ranked.score_fn is not None:
            causes = attributions(ranked.score_fn, snapshot, user, ranked.items)
        rendered_rows = render(ranked, snapshot, causes)
        return rendered_list(ranked, rendered_rows, request, reduced)


def request_user(
    request: RecommendationRequest,
    rows: Rows,
    snapshot: ServingSnapshot,
    signals: Signals,
    now_ms: float,
) -> RequestUser:
    """The user's state at `now_ms`: the items looked at now, then the stored history."""
    now_ms = max(now_ms, snapshot.now_ms)  # events may be ahead of the clock
    in_view = [HistoryEntry("", item, Action.VIEW, None, int(now_ms)) for item in request.items]
    history = effective([*in_view, *entries(rows)])
    state = UserState.of(history, snapshot.find, signals, now_ms)
    if request.context is not None:
        state = state.shown_on(request.context.page, request.context.device)
    known = bool(rows) and not request.user_id.startswith(events.SESSION)
    return RequestUser(history, state, known)


def with_shown(
    user: RequestUser, snapshot: ServingSnapshot, shown: Mapping[str, int]
) -> RequestUser:
    """The user who was shown these items within a day."""
    found = ((snapshot.find(item_id), n) for item_id, n in shown.items())
    state = user.state.after_lists({item: n for item, n in found if item is not None})
    return replace(user, state=state)


def with_repeat_purchases(
    user: RequestUser, snapshot: ServingSnapshot, days: Mapping[str, float]
) -> RequestUser:
    """The user for whom items bought long enough ago, by their category, are unseen.

    An item of several categories waits for the shortest time. Disliked items stay seen.
    """
    state, again = user.state, []
    for item, time_ms in zip(state.purchased.tolist(), state.purchased_ms.tolist(), strict=True):
        known = snapshot.catalogue.get(snapshot.ids[item])
        waits = [days[name] for name in known.categories if name in days] if known else []
        if waits and state.now_ms - time_ms >= min(waits) * DAY_MS and item not in state.disliked:
            again.append(item)
    seen = state.seen[not_in(state.seen, np.array(again, np.int32))]
    return replace(user, state=replace(state, seen=seen))


def _attempts(
    tiers: Iterator[RankingTier], eligibility: Eligibility
) -> Iterator[tuple[RankingTier, Eligibility]]:
    """The tiers in order; at last the general ones with seen items allowed."""
    for tier in tiers:
        yield tier, eligibility
    relaxed = eligibility.relaxed()
    for tier in LAST_RESORT:
        yield tier, relaxed


def render(
    ranked: RankedList, snapshot: ServingSnapshot, causes: list[list[dict[str, Any]]] | None
) -> list[dict[str, Any]]:
    """The items of a list as they are sent."""
    items = ranked.items.tolist()
    names = list(ranked.contributions)
    columns = [values.tolist() for values in ranked.contributions.values()]
    contributions = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    scores = [sum(row.values()) for row in contributions]
    if ranked.reranked:
        scores = list(accumulate(scores, min))  # sums of contributions may differ in the last bit
    reasons = ranked.reason_fn(ranked.items, ranked.sources)
    rows: list[dict[str, Any]] = [
        {
            **describe(snapshot.catalogue, snapshot.ids[item]),
            "score": scores[rank],
            "source": ranked.sources[rank],
            "reason": ranked.fixed_reasons.get(rank, reasons[rank]),
            "contributions": contributions[rank],
            "badges": snapshot.badges.of(item),
        }
        for rank, item in enumerate(items)
    ]
    if snapshot.stars[ranked.items, 0].any():
        for row, item in zip(rows, items, strict=True):
            row |= snapshot.ratings_row(item)
    if causes is not None:
        for row, cause in zip(rows, causes, strict=True):
            row["attributions"] = cause
    if ranked.propensities is not None:
        for row, propensity in zip(rows, ranked.propensities.tolist(), strict=True):
            row["propensity"] = propensity
    return rows


def rendered_list(
    ranked: RankedList, rows: list[dict[str, Any]], request: RecommendationRequest, reduced: bool
) -> RenderedList:
    """The rows of `render` as JSON, with those of the impression and the cursor."""
    extra = () if ranked.propensities is None else ("propensity",)
    names = (*_IMPRESSION_FIELDS, *extra)
    impression_rows = [{name: row[name] for name in names} for row in rows]
    following = None
    if request.page.paginate:
        ids = [row["item_id"] for row in rows]
        following = cursor_after(request.page.shown, ids, request.n)
    return RenderedList(
        ranked.tier,
        _exact(orjson.dumps(rows)),
        _exact(orjson.dumps(impression_rows)),
        len(rows),
        following,
        reduced,
    )


def _exact(json: bytes) -> bytes:
    """A copy that takes its length in memory: orjson's result may take twice as much."""
    return bytes(memoryview(json))


def describe(catalogue: Catalogue, item_id: str) -> dict[str, Any]:
    """What every list says about an item."""
    item = catalogue.get(item_id)
    if item is None:
        return {"item_id": item_id, "title": None, "categories": ()}
    return {"item_id": item_id, "title": item.title, "categories": item.categories}

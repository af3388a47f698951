"""The request path: state → candidates → filter → score → receipt → response.

reads   redis  {u:<user>}:history, in one round trip; everything else is in memory
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from afterclick import events
from afterclick.api import Policy, Tier
from afterclick.arrays import IntArray
from afterclick.errors import Unavailable
from afterclick.events import SESSION, Action
from afterclick.features import features
from afterclick.model import Model
from afterclick.retrieval import (
    REDUCED_LIMITS,
    SOURCES,
    CandidateLimits,
    Candidates,
    Searches,
    candidate_items,
)
from afterclick.state import HistoryEntry, effective
from afterclick.user_vectors import UserState, UserVectors
from serving.ranking.arrange import arrange, pool_size
from serving.ranking.choice import Choice
from serving.ranking.cursors import cursor_after
from serving.ranking.explain import attributions
from serving.ranking.filters import Filters
from serving.ranking.lists import Ranked, by_interests, overall, popular
from serving.ranking.one_model import by_one_model
from serving.ranking.options import FIRST_PAGE, PLAIN
from serving.ranking.reasons import reasons
from serving.ranking.remembered import (
    Recommendation,
    RecommendationRequest,
    RenderedList,
    ResponseCache,
)
from serving.state.history import OnlineStore, Rows, entries
from serving.state.item_catalogue import Catalogue
from serving.state.live_trends import TrendFeed
from serving.state.log_waiters import Position, PositionWaiters
from serving.state.snapshot import NO_RULES, ServingSnapshot, SnapshotStore

Answer = dict[str, Any]
CATEGORY = 100
"""Trending items of a category that are ranked with the candidates inside it."""
_LOGGED = ("item_id", "score", "source")


class Recommender:
    """Answers with a list, whatever is away."""

    def __init__(
        self,
        store: OnlineStore,
        snapshots: SnapshotStore,
        feed: TrendFeed,
        catalogue: Catalogue,
        waiters: PositionWaiters,
        weights: Mapping[Action, float],
        late: Callable[[float], bool] = lambda _: False,
        cache_ttl_s: float = 0.0,
    ) -> None:
        """`late` says of the moment an answer was begun (time.monotonic) whether there is no time left.

        A personal list is given again for `cache_ttl_s` seconds, while the user does nothing.
        """
        self._late = late
        self._store, self._snapshots, self._feed, self._waiters = store, snapshots, feed, waiters
        self._catalogue, self._weights = catalogue, weights
        self._remembered = ResponseCache(cache_ttl_s)
        self.filters = Filters(catalogue)
        self._dice = np.random.default_rng()

    async def recommend(self, ask: RecommendationRequest) -> Recommendation:
        """The list for a user. Never fails: `degraded` says that something was away.

        `reduced` says that it was made from fewer candidates, under load shedding.
        """
        fresh = await self._caught_up(ask.after)
        began = time.monotonic()
        as_of = dict(self._feed.positions)  # taken first: the state read below is at least as new
        try:
            rows, degraded = await self._store.rows(ask.user_id) if ask.user_id else [], False
        except Unavailable:
            rows, degraded = [], True
        snapshot = self._snapshots.of(ask.options.model)
        chance = ask.options.explore > 0
        reduced = bool(rows or ask.items) and not ask.patient and self._late(began)
        shown = None if chance else self._remembered.get(ask, rows, snapshot, reduced)
        remembered = shown is not None
        if shown is None:
            shown = self._show(
                snapshot,
                self._rank(snapshot, ask, rows, REDUCED_LIMITS if reduced else None),
                ask,
                reduced,
            )
            if not chance:
                self._remembered.put(ask, rows, snapshot, shown)
        body = {
            "user_id": ask.user_id or None,
            "source": shown.source,
            "degraded": degraded,
            "reduced": shown.reduced,
            "fresh": fresh,
            "model_version": snapshot.loaded.version or None,
            "impression_id": events.new_id(),
            "as_of": as_of,
            "items": orjson.Fragment(shown.items),
        }
        if ask.page.follow:
            body["next"] = shown.next
        return Recommendation(body, shown, ask.options.label, remembered)

    async def _caught_up(self, after: Position | None) -> bool | None:
        """Wait for the event the caller has just sent; None where the caller does not ask."""
        if after is None:
            return None
        return await self._waiters.reached(after, self._feed.positions)

    def _rank(
        self,
        snapshot: ServingSnapshot,
        ask: RecommendationRequest,
        rows: Rows,
        limits: CandidateLimits | None,
    ) -> Ranked:
        """The best the ladder of cold start can do for this user, as rules and options have it."""
        now_ms = self._now(snapshot)
        history = effective([*_context(ask, now_ms), *entries(rows)])
        state = UserState.of(history, snapshot.find, self._weights, now_ms)
        choice = self._choice(snapshot, ask, state)
        ranked = self._ladder(snapshot, ask, rows, state, choice, history, limits)
        if choice.n != ask.n or snapshot.rules is not NO_RULES:
            ranked = arrange(
                snapshot, self._catalogue, ranked, ask.n, ask.options, ask.page, self._dice
            )
        if ask.explain and ranked.by is not None:
            causes = attributions(
                snapshot, ranked.by, state, ranked.items, history, self._catalogue
            )
            ranked = replace(ranked, attributions=causes)
        return ranked

    def _ladder(
        self,
        snapshot: ServingSnapshot,
        ask: RecommendationRequest,
        rows: Rows,
        state: UserState,
        choice: Choice,
        history: Sequence[HistoryEntry],
        limits: CandidateLimits | None,
    ) -> Ranked:
        model, policy = snapshot.loaded.model, ask.options.policy
        if policy in (Policy.POPULAR, Policy.TRENDING):
            return (
                popular(snapshot, choice) if policy is Policy.POPULAR else overall(snapshot, choice)
            )
        if model is not None and len(state.items):
            known = rows and not ask.user_id.startswith(SESSION)
            source = Tier.PERSONALISED if known else Tier.SESSION
            if policy is Policy.BLEND:
                return personalised(
                    snapshot, model, state, choice, self._catalogue, history, source, limits
                )
            alone = by_one_model(snapshot, policy, state, choice, self._catalogue, history, source)
            if alone is not None:
                return alone
        interests = ask.interests or self._tastes(snapshot, state)
        if interests:
            interesting = by_interests(snapshot, self._catalogue, interests, choice)
            if interesting is not None:
                return interesting
        return overall(snapshot, choice)

    def _choice(
        self, snapshot: ServingSnapshot, ask: RecommendationRequest, state: UserState
    ) -> Choice:
        """What may be in the list."""
        inside = self.filters.inside(snapshot, ask.category, ask.filters)
        excluded = snapshot.indices(ask.exclude)
        rules, page = snapshot.rules, ask.page
        if rules is NO_RULES and ask.options == PLAIN and page == FIRST_PAGE:
            return Choice(ask.n, state.seen, excluded, inside)
        excluded = np.concatenate([excluded, rules.excluded, snapshot.indices(page.shown)])
        wanted = (
            rules.wanted if not ask.options.explore else np.union1d(rules.wanted, snapshot.newest)
        )
        size = pool_size(ask.n, page, ask.options)
        return Choice(size, state.seen, excluded, inside, wanted, page.start > 0)

    def _tastes(self, snapshot: ServingSnapshot, state: UserState) -> tuple[str, ...]:
        """Before any model: the finest category of each of the newest items."""
        items = (self._catalogue.items.get(snapshot.ids[i]) for i in state.items[:5].tolist())
        return tuple(
            dict.fromkeys(item.categories[-1] for item in items if item and item.categories)
        )

    def _now(self, snapshot: ServingSnapshot) -> float:
        """Now, or the newest event time where a replay runs ahead of the clock."""
        return max(time.time() * 1000, snapshot.now_ms)

    def _show(
        self, snapshot: ServingSnapshot, ranked: Ranked, ask: RecommendationRequest, reduced: bool
    ) -> RenderedList:
        """A ranked list as it is answered and logged."""
        ids = [snapshot.ids[item] for item in ranked.items.tolist()]
        names, columns = list(ranked.parts), [part.tolist() for part in ranked.parts.values()]
        receipts = [dict(zip(names, parts, strict=True)) for parts in zip(*columns, strict=True)]
        badges = [snapshot.badges.get(item, ()) for item in ranked.items.tolist()]
        scores = [sum(receipt.values()) for receipt in receipts]
        if ranked.arranged:
            scores = list(accumulate(scores, min))  # sums of parts may differ in the last bit
        items: list[Answer] = [
            {
                **describe(self._catalogue, item_id),
                "score": score,
                "source": source,
                "reason": reason,
                "contributions": receipt,
                "badges": marks,
            }
            for item_id, score, source, reason, receipt, marks in zip(
                ids, scores, ranked.sources, ranked.reasons, receipts, badges, strict=True
            )
        ]
        if ranked.attributions is not None:
            for item, causes in zip(items, ranked.attributions, strict=True):
                item["attributions"] = causes
        told: tuple[str, ...] = _LOGGED
        if ranked.propensities is not None:
            told = (*_LOGGED, "propensity")
            for item, propensity in zip(items, ranked.propensities.tolist(), strict=True):
                item["propensity"] = propensity
        logged = [{name: item[name] for name in told} for item in items]
        following = cursor_after(ask.page.shown, ids, ask.n) if ask.page.follow else None
        return RenderedList(
            ranked.source, orjson.dumps(items), orjson.dumps(logged), len(items), following, reduced
        )


def describe(catalogue: Catalogue, item_id: str) -> Answer:
    """What every list says of an item."""
    item = catalogue.items.get(item_id)
    if item is None:
        return {"item_id": item_id, "title": None, "categories": ()}
    return {"item_id": item_id, "title": item.title, "categories": item.categories}


def _context(ask: RecommendationRequest, now_ms: float) -> list[HistoryEntry]:
    """What the request says is looked at now, as if it stood on top of the history."""
    return [HistoryEntry("", item_id, Action.VIEW, None, int(now_ms)) for item_id in ask.items]


def personalised(
    snapshot: ServingSnapshot,
    model: Model,
    state: UserState,
    choice: Choice,
    catalogue: Catalogue,
    history: Sequence[HistoryEntry],
    source: Tier,
    limits: CandidateLimits | None = None,
) -> Ranked:
    """Rank what the model, the live history and the trends bring for this user."""
    loaded, view, content = snapshot.loaded, snapshot.view, snapshot.content
    user = UserVectors.of(model, state)
    searches = Searches(loaded.als_search, loaded.tower_search, snapshot.content_search, content)
    found = candidate_items(model, user, view.top, searches, limits).without(choice.excluded)
    items, sources = _enough(snapshot, choice, found)
    if not len(items):
        return overall(snapshot, choice)
    rows = features(model, user, view, items, content)
    top, receipt = loaded.ranker.best(rows, choice.n)
    if len(choice.wanted):
        asked_for = np.flatnonzero(np.isin(items, choice.wanted))
        top = np.concatenate([top, np.setdiff1d(asked_for, top)])
        receipt = loaded.ranker.receipt(rows[top])
    shown = items[top]
    names = [SOURCES[s] if s >= 0 else "popular" for s in sources[top].tolist()]
    return Ranked(
        source=source,
        items=shown,
        parts=receipt,
        sources=names,
        reasons=reasons(model, snapshot, state, shown, names, history, catalogue),
        by=lambda state, items: loaded.ranker.score(
            features(model, UserVectors.of(model, state), view, items, content)
        ),
    )


def _enough(
    snapshot: ServingSnapshot, choice: Choice, found: Candidates
) -> tuple[IntArray, NDArray[np.int8]]:
    """The candidates inside the category; with its hottest and with popular items where they are few."""
    items, sources = found.items, found.sources
    if choice.inside is not None:
        keep = np.isin(items, choice.inside)
        items, sources = items[keep], sources[keep]
        items, sources = _add(
            items, sources, choice.fitting(choice.trending(snapshot), items)[:CATEGORY]
        )
    if len(choice.wanted):
        items, sources = _add(items, sources, choice.also(items))
    if len(items) < choice.n:
        more = choice.fitting(choice.popular(snapshot), items)
        items, sources = _add(items, sources, more[: choice.n - len(items)])
    return items, sources


def _add(
    items: IntArray, sources: NDArray[np.int8], more: IntArray
) -> tuple[IntArray, NDArray[np.int8]]:
    return np.concatenate([items, more]), np.concatenate([sources, np.full(len(more), -1, np.int8)])

"""The recommender with histories, trends and catalogue in memory, without services."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import orjson

from afterclick.events import Action, Item
from afterclick.model import Model
from afterclick.ranking import FormulaRanker, Ranker
from afterclick.retrieval import exact_search
from afterclick.settings import StreamSettings
from afterclick.state import HistoryEntry
from serving.control.rules import Rule, RuleBook, RuleDraft
from serving.recommender import Recommender, RecommenderConfig
from serving.request import RecommendationRequest
from serving.response_cache import Recommendation
from serving.state.ann_search import content_search
from serving.state.history import OnlineStore, Rows
from serving.state.item_catalogue import Catalogue
from serving.state.live_transitions import RecentContacts
from serving.state.live_trends import PositionWaiters, TrendState
from serving.state.loaded_models import LoadedModel, no_model
from serving.state.snapshot import ServingSnapshot
from serving.state.snapshot_builder import SnapshotSources, SnapshotStore
from tests.serving import shop

Event = str | tuple[str, Action]
"""An item that a user liked, or an item and another action."""


class MemoryStore:
    """Histories by user, newest event first, as Redis would give them."""

    def __init__(self, events: Mapping[str, Sequence[Event]]) -> None:
        self._events, self._now = events, time.time() * 1000

    async def rows(self, user_id: str, newest: int | None = None) -> Rows:
        rows: Rows = []
        for n, event in enumerate(self._events.get(user_id, ())):
            item_id, action = (event, Action.LIKE) if isinstance(event, str) else event
            time_ms = int(self._now) - n * 60_000
            entry = HistoryEntry(f"{user_id}-{n}", item_id, action, None, time_ms)
            rows += [entry.member(), str(entry.time_ms).encode()]
        return rows


def trends_of(items: Sequence[Item], interactions: Sequence[int]) -> TrendState:
    """Trends in which item k was chosen `interactions[k]` times just now."""
    trends, now = TrendState(), time.time() * 1000
    for item, times in zip(items, interactions, strict=True):
        for _ in range(times):
            trends.table.add(item.item_id, now, 1.0)
    return trends


class Offline:
    """A recommender over the given items, histories and model, without services."""

    def __init__(
        self,
        items: Sequence[Item] | None = None,
        interactions: Sequence[int] | None = None,
        liked: Mapping[str, Sequence[Event]] | None = None,
        model: Model | None = None,
        ranker: Ranker | None = None,
        cache_ttl_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        contacts: RecentContacts | None = None,
        **config: Any,
    ) -> None:
        items = shop.catalogue() if items is None else items
        self.catalogue = Catalogue()
        for item in items:
            self.catalogue.put(item)
        counts = (
            interactions
            if interactions is not None
            else [len(items) - i for i in range(len(items))]
        )
        self.feed = trends_of(items, counts)
        self.rules = RuleBook(self.catalogue)
        loaded = no_model()
        if model is not None:
            loaded = LoadedModel(
                model.version,
                model,
                ranker or FormulaRanker(),
                exact_search(model.factors) if model.factors is not None else None,
                exact_search(model.towers.targets) if model.towers is not None else None,
                content_search(model.content) if model.content is not None else None,
                exact_search(model.ncf.targets) if model.ncf is not None else None,
            )
        self.snapshots = SnapshotStore(
            SnapshotSources(self.feed, self.catalogue, self.rules, contacts=contacts), loaded
        )
        store = cast(OnlineStore, MemoryStore(liked or {}))
        signals = StreamSettings().signals
        waiters = PositionWaiters(0.3)
        self.busy = False
        self.recommender = Recommender(
            store,
            self.snapshots,
            self.feed,
            waiters,
            RecommenderConfig(signals, cache_ttl_s, lambda _: self.busy, clock=clock, **config),
        )

    @property
    def snapshot(self) -> ServingSnapshot:
        return self.snapshots.current

    def decide(self, *drafts: RuleDraft) -> tuple[Rule, ...]:
        """Replace all rules."""
        self.rules.rules = tuple(Rule.of(draft) for draft in drafts)
        self.snapshots.current = self.snapshots.build()
        return self.rules.rules

    def answer(self, ask: RecommendationRequest) -> Recommendation:
        return asyncio.run(self.recommender.recommend(ask))

    def items(self, user_id: str = "", n: int = 10, **asked: Any) -> list[dict[str, Any]]:
        """The rows of a list; contributions, order and repeats are checked."""
        answer = self.answer(RecommendationRequest(user_id, n, **asked))
        rows: list[dict[str, Any]] = orjson.loads(answer.rendered.items)
        for row in rows:
            assert abs(sum(row["contributions"].values()) - row["score"]) < 1e-6, row
        scores = [row["score"] for row in rows]
        assert scores == sorted(scores, reverse=True), scores
        assert len({row["item_id"] for row in rows}) == len(rows)
        return rows

    def ids(self, user_id: str = "", n: int = 10, **asked: Any) -> list[str]:
        return [row["item_id"] for row in self.items(user_id, n, **asked)]

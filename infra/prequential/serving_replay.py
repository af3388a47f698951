"""The log in order of time through the serving code.

At each moment that is asked about, the trends move forward, models that are due are trained, a
snapshot is built and `serving.recommender` makes the lists: its tiers, candidates from its indexes,
features and ranker, uncached. A model is served from its cut on: training takes no time here.

Memory: the log, the trends, and of each training schedule one model with its snapshot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import orjson
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from afterclick.arrays import BoolArray, IntArray
from afterclick.events import Item
from afterclick.settings import Settings
from infra.prequential.past_models import Models, Retrain, TrainedModel
from infra.prequential.past_state import (
    LoggedHistories,
    Moment,
    PastContacts,
    PastHistories,
    PastTrends,
    RequestedHistories,
    found_leaks,
)
from serving.recommender import Recommender, RecommenderConfig
from serving.request import RecommendationRequest
from serving.state.item_catalogue import Catalogue
from serving.state.live_trends import PositionWaiters
from serving.state.loaded_models import no_model
from serving.state.snapshot_builder import SnapshotSources, SnapshotStore
from training.config import ReplayConfig
from training.event_log import EventLog
from training.models.content_vectors import ItemTexts
from training.protocols import NOTHING, Queries

LENGTH = 10
"""Ranks of a list."""
ServerKey = tuple[Retrain, bool]
"""What lists of one server share: `Arm.server`."""


@dataclass(frozen=True)
class Arm:
    """How fresh model and user state of a list are."""

    retrain: Retrain = Retrain.NEVER
    delay_s: float = 0.0
    live_graph: bool = True
    """Whether events update the transition graph; else it stays that of the model."""

    @property
    def server(self) -> ServerKey:
        """Arms with equal models and graphs share a server."""
        return self.retrain, self.live_graph


@dataclass(frozen=True)
class ReplayedShop:
    """The log that is replayed, and what serving is set to."""

    log: EventLog
    """It knows the items of `texts`."""
    texts: ItemTexts
    serving: RecommenderConfig
    known: ReplayConfig

    @classmethod
    def of(cls, settings: Settings, log: EventLog, texts: ItemTexts) -> ReplayedShop:
        log = log.also(sorted(texts))
        return cls(log, texts, RecommenderConfig.of(settings), ReplayConfig.of(settings))

    def catalogue(self) -> Catalogue:
        """The items with a text. They have no times: all are known from the start."""
        catalogue = Catalogue()
        for item_id, (title, categories) in self.texts.items():
            catalogue.put(Item(item_id=item_id, title=title, categories=categories))
        return catalogue


@dataclass(frozen=True, eq=False)
class ArmLists:
    """The lists of one arm for q queries."""

    items: IntArray
    """(q, LENGTH) item_index in the log, -1 pads."""
    tier: list[str]
    version: list[str]
    """The model of each list."""
    end_ms: dict[str, int]
    """Version → event time before which its training data ends."""
    leaks: BoolArray
    """(q,) lists made with knowledge from their future."""

    @classmethod
    def empty(cls, n: int) -> ArmLists:
        items = np.full((n, LENGTH), NOTHING, np.int32)
        return cls(items, [""] * n, [""] * n, {}, np.zeros(n, bool))


@dataclass(frozen=True, eq=False)
class Walk:
    """The lists of every arm for the same queries."""

    queries: Queries
    lists: dict[Arm, ArmLists]
    n_items: NDArray[np.int64]
    """(q,) items that could have been shown."""


class ServingReplay:
    """Walks through the queries in order of time. One instance, one walk."""

    def __init__(
        self,
        shop: ReplayedShop,
        models: Models,
        from_ms: int,
        histories: PastHistories | None = None,
    ) -> None:
        """`from_ms`: the first training."""
        self._shop, self._models, self._from_ms = shop, models, from_ms
        self._histories = histories or LoggedHistories(shop.log, shop.known.history_length)
        self._trends = PastTrends(shop.log, shop.known)
        self._contacts = PastContacts(shop.log, shop.known.established_days)
        self._catalogue = shop.catalogue()
        self._trained: dict[int, TrainedModel] = {}
        self._now_ms = 0
        self._index = {item_id: n for n, item_id in enumerate(shop.log.item_ids.tolist())}

    def walk(self, asked: Queries, arms: Sequence[Arm]) -> Walk:
        """The lists of the arms for the queries, none of which is before `from_ms`."""
        lists = {arm: ArmLists.empty(len(asked)) for arm in arms}
        n_items = np.zeros(len(asked), np.int64)
        found = Walk(asked, lists, n_items)
        servers = {arm.server: self._server(arm) for arm in arms}
        try:
            with threadpool_limits(1, "blas"):  # small matrices: threads would wait for another
                asyncio.run(self._walk(found, servers))
        finally:
            for server in servers.values():
                server.recommender.close()
        return found

    def _server(self, arm: Arm) -> _Server:
        moment = Moment(self._from_ms, np.array([NOTHING], np.int32))
        store = RequestedHistories(self._histories, moment)
        sources = SnapshotSources(
            self._trends,
            self._catalogue,
            limits=self._shop.known.limits,
            clock_ms=self._clock_ms,
            contacts=self._contacts if arm.live_graph else None,
        )
        snapshots = SnapshotStore(sources, no_model())
        config = replace(self._shop.serving, cache_ttl_s=0.0, clock_ms=self._clock_ms)
        waiters = PositionWaiters(0.0)
        recommender = Recommender(store, snapshots, self._trends, waiters, config)
        return _Server(store, snapshots, recommender)

    def _clock_ms(self) -> float:
        return float(self._now_ms)

    async def _walk(self, walk: Walk, servers: Mapping[ServerKey, _Server]) -> None:
        asked = walk.queries
        order = np.argsort(asked.now_ms, kind="stable")
        for moment_ms, rows in _groups(asked.now_ms, order):
            self._advance(moment_ms, servers)
            shown = next(iter(servers.values())).snapshots.current.n_shown
            walk.n_items[rows] = shown
            for row in rows.tolist():
                for arm, lists in walk.lists.items():
                    moment = Moment(moment_ms, asked.live[row], int(arm.delay_s * 1000))
                    user_id = str(self._shop.log.user_ids[asked.user[row]])
                    await self._ask(servers[arm.server], user_id, moment, (lists, row))

    def _advance(self, moment_ms: int, servers: Mapping[ServerKey, _Server]) -> None:
        """Bring trends, models and snapshots to a moment."""
        self._now_ms = moment_ms
        self._trends.advance(moment_ms)
        self._contacts.advance(moment_ms)
        cuts = {retrain: retrain.cut_ms(self._from_ms, moment_ms) for retrain, _ in servers}
        self._trained = {
            cut: self._trained.get(cut) or self._models.at(cut) for cut in sorted({*cuts.values()})
        }
        for (retrain, _), server in servers.items():
            server.serve(self._trained[cuts[retrain]])

    async def _ask(
        self, server: _Server, user_id: str, moment: Moment, place: tuple[ArmLists, int]
    ) -> None:
        lists, row = place
        server.store.moment = moment
        request = RecommendationRequest(user_id, LENGTH, never_shed=True)
        made = await server.recommender.recommend(request)
        ids = [item["item_id"] for item in orjson.loads(made.rendered.items)]
        lists.items[row, : len(ids)] = [self._index[item_id] for item_id in ids]
        lists.tier[row] = str(made.rendered.source)
        lists.version[row] = version = made.body["model_version"] or ""
        lists.end_ms[version] = server.model.end_ms
        leaks = found_leaks(server.store.given, moment, self._trends, server.model)
        lists.leaks[row] = leaks or self._contacts.newest_ms >= moment.now_ms


@dataclass
class _Server:
    """The serving code with the models of one schedule."""

    store: RequestedHistories
    snapshots: SnapshotStore
    recommender: Recommender
    model: TrainedModel = field(default_factory=lambda: TrainedModel(no_model(), 0))

    def serve(self, model: TrainedModel) -> None:
        """Build the snapshot of this moment with a model."""
        if model is not self.model:
            self.model = model
            self.snapshots.use(model.loaded)
        self.snapshots.current = self.snapshots.build()


def _groups(
    now_ms: NDArray[np.int64], order: NDArray[np.intp]
) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Each moment, ascending, with the rows of its queries."""
    moments, start = np.unique(now_ms[order], return_index=True)
    yield from zip(moments.tolist(), np.split(order, start[1:]), strict=True)

"""`afterclick replay-serving`: the log in order of time through the serving code.

reads   a dataset (training/evaluation/reviews.py), or parquet <home>/etl/<version>
writes  artifacts in a temporary folder

At each moment that is asked about, the trends move forward, models that are due are trained, a
snapshot is built and `serving.recommender` makes the lists: its tiers, candidates from its indexes,
features and ranker, uncached. A model is served from its cut on: training takes no time here.

Memory: the log, the trends, and of each training schedule one model with its snapshot.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from afterclick.arrays import BoolArray, IntArray
from afterclick.errors import BadInput
from afterclick.events import Item
from afterclick.settings import Settings
from afterclick.signals import Signals
from afterclick.trends import DAY_MS
from infra.prequential.past_state import (
    LoggedHistories,
    Models,
    Moment,
    PastHistories,
    PastTrends,
    RecipeModels,
    RequestedHistories,
    TrainedModel,
    found_leaks,
)
from serving.recommender import Recommender, RecommenderConfig
from serving.request import RecommendationRequest
from serving.state.item_catalogue import Catalogue
from serving.state.live_trends import PositionWaiters
from serving.state.loaded_models import no_model
from serving.state.snapshot_builder import SnapshotSources, SnapshotStore
from training.config import ModelConfig, ReplayConfig
from training.evaluation.time_split import cut_of, interactions_of
from training.event_log import EventLog
from training.fit import trainer
from training.interactions import TooFewInteractions
from training.models.content_vectors import ItemTexts
from training.protocols import NOTHING, EvaluationSplit, Queries, every_choice, queries, sample

LENGTH = 10
"""Ranks of a list."""
DEFAULT_DAYS = 60
_SAMPLE_SEED = 42
_DAY = int(DAY_MS)
Progress = Callable[[str], None]


class Retrain(StrEnum):
    """When models are trained: at the start, then at these intervals."""

    NEVER = "never"
    WEEKLY = "weekly"
    DAILY = "daily"

    @property
    def every_s(self) -> int | None:
        """Seconds between two trainings; None: the first model stays."""
        return {"never": None, "weekly": 7 * 86_400, "daily": 86_400}[self]

    def cut_ms(self, from_ms: int, now_ms: int) -> int:
        """When the model that serves at `now_ms` was trained."""
        if self.every_s is None:
            return from_ms
        every_ms = self.every_s * 1000
        return from_ms + (now_ms - from_ms) // every_ms * every_ms


class Ask(StrEnum):
    """Which events are asked about."""

    EVERY = "every"
    """Each positive event on an item that is new to the user; events of a user with equal times
    are one query, and one of them is known (`training.protocols.every_choice`)."""
    LIVE = "live"
    """The queries `live` of `afterclick evaluate`."""


@dataclass(frozen=True)
class Arm:
    """How fresh model and user state of a list are."""

    retrain: Retrain = Retrain.NEVER
    delay_s: float = 0.0


@dataclass(frozen=True)
class ReplayedShop:
    """The log that is replayed, and what serving is set to."""

    log: EventLog
    """It knows the items of `texts`."""
    texts: ItemTexts
    signals: Signals
    known: ReplayConfig

    @classmethod
    def of(cls, settings: Settings, log: EventLog, texts: ItemTexts) -> ReplayedShop:
        log = log.also(sorted(texts))
        return cls(log, texts, settings.stream.signals, ReplayConfig.of(settings))

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
        self._catalogue = shop.catalogue()
        self._trained: dict[int, TrainedModel] = {}
        self._now_ms = 0
        self._index = {item_id: n for n, item_id in enumerate(shop.log.item_ids.tolist())}

    def walk(self, asked: Queries, arms: Sequence[Arm]) -> Walk:
        """The lists of the arms for the queries, none of which is before `from_ms`."""
        lists = {arm: ArmLists.empty(len(asked)) for arm in arms}
        n_items = np.zeros(len(asked), np.int64)
        found = Walk(asked, lists, n_items)
        servers = {arm.retrain: self._server() for arm in arms}
        try:
            with threadpool_limits(1, "blas"):  # small matrices: threads would wait for another
                asyncio.run(self._walk(found, servers))
        finally:
            for server in servers.values():
                server.recommender.close()
        return found

    def _server(self) -> _Server:
        moment = Moment(self._from_ms, np.array([NOTHING], np.int32))
        store = RequestedHistories(self._histories, moment)
        sources = SnapshotSources(
            self._trends, self._catalogue, limits=self._shop.known.limits, clock_ms=self._clock_ms
        )
        snapshots = SnapshotStore(sources, no_model())
        config = RecommenderConfig(self._shop.signals, clock_ms=self._clock_ms)
        waiters = PositionWaiters(0.0)
        recommender = Recommender(store, snapshots, self._trends, waiters, config)
        return _Server(store, snapshots, recommender)

    def _clock_ms(self) -> float:
        return float(self._now_ms)

    async def _walk(self, walk: Walk, servers: Mapping[Retrain, _Server]) -> None:
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
                    await self._ask(servers[arm.retrain], user_id, moment, (lists, row))

    def _advance(self, moment_ms: int, servers: Mapping[Retrain, _Server]) -> None:
        """Bring trends, models and snapshots to a moment."""
        self._now_ms = moment_ms
        self._trends.advance(moment_ms)
        cuts = {retrain: retrain.cut_ms(self._from_ms, moment_ms) for retrain in servers}
        self._trained = {
            cut: self._trained.get(cut) or self._models.at(cut) for cut in sorted({*cuts.values()})
        }
        for retrain, server in servers.items():
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
        lists.leaks[row] = found_leaks(server.store.given, moment, self._trends, server.model)


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


@dataclass(frozen=True)
class ReplayRequest:
    """Options of the command line that both commands share."""

    dataset: Path | None = None
    from_day: str | None = None
    to_day: str | None = None
    queries: int | None = 10_000
    """At most; None: all."""
    preset: str | None = "fast"
    engine: str | None = None
    ask: Ask = Ask.EVERY


@dataclass(frozen=True)
class Window:
    """The part of a log that is asked about."""

    shop: ReplayedShop
    from_ms: int
    end_ms: int
    """The queries are in [from_ms, end_ms)."""
    asked: Queries
    total: int
    """Queries of which `asked` is a sample."""

    def facts(self) -> dict[str, Any]:
        """The window as JSON types."""
        return {
            "from": day_of(self.from_ms),
            "to": day_of(self.end_ms - 1),
            "queries": len(self.asked),
            "queries_in_window": self.total,
            "users": len(np.unique(self.asked.user)),
        }


def run(
    settings: Settings, request: ReplayRequest, arms: Sequence[Arm], progress: Progress
) -> tuple[Window, Walk]:
    """Read the log, and walk through its window with models of the recipe.

    Raises BadInput for a window without queries or without a past to train on.
    """
    config = ModelConfig.of(settings, request.preset, request.engine)
    progress("reading the interactions")
    window = window_of(settings, request)
    progress(f"asking for {len(window.asked):,} of {window.total:,} lists, {len(arms)} times each")
    began = time.perf_counter()
    with _models(settings, config, window, progress) as models:
        replay = ServingReplay(window.shop, models, window.from_ms)
        try:
            walk = replay.walk(window.asked, arms)
        except TooFewInteractions as error:
            raise BadInput(
                f"--from {day_of(window.from_ms)}: {error}; choose a later day"
            ) from None
    progress(f"walked in {time.perf_counter() - began:.0f} s")
    return window, walk


@contextmanager
def _models(
    settings: Settings, config: ModelConfig, window: Window, progress: Progress
) -> Iterator[Models]:
    with (
        tempfile.TemporaryDirectory(prefix="afterclick-replay-") as folder,
        trainer(settings, window.shop.texts, config) as models,
    ):
        yield _Reported(RecipeModels(models, window.shop.log, Path(folder)), progress)


@dataclass(frozen=True)
class _Reported:
    """Models with a line of progress for each."""

    models: Models
    progress: Progress

    def at(self, cut_ms: int) -> TrainedModel:
        began = time.perf_counter()
        model = self.models.at(cut_ms)
        self.progress(f"model of {day_of(cut_ms)} in {time.perf_counter() - began:.0f} s")
        return model


def window_of(settings: Settings, request: ReplayRequest) -> Window:
    """The window of a request. Raises BadInput for one without queries, and for invalid days."""
    data = interactions_of(settings, request.dataset)
    log = data.log
    if request.to_day is not None:
        log = log.before(cut_of(log, request.to_day, "--to"))
    from_ms, end_ms = _start(log, request), int(log.time_ms[-1]) + 1
    split = EvaluationSplit(log, from_ms, end_ms)
    found = every_choice(split) if request.ask is Ask.EVERY else queries(split, request.ask)
    if not len(found):
        raise BadInput(
            f"nothing to ask about from {day_of(from_ms)} to {day_of(end_ms - 1)}: no user takes "
            "a new item at a known time; choose an earlier --from or a later --to"
        )
    asked = sample(found, request.queries, _SAMPLE_SEED)
    shop = ReplayedShop.of(settings, log, data.texts)
    return Window(shop, from_ms, end_ms, asked, len(found))


def _start(log: EventLog, request: ReplayRequest) -> int:
    """The first moment of the window."""
    if request.from_day is None:
        return max(int(log.time_ms[-1]) // _DAY * _DAY - DEFAULT_DAYS * _DAY, int(log.time_ms[0]))
    days = request.from_day, request.to_day
    if None not in days and str(days[0]) >= str(days[1]):
        raise BadInput(f"--from {days[0]} is not before --to {days[1]}")
    return cut_of(log, request.from_day, "--from")


def day_of(time_ms: int) -> str:
    """The day (UTC) of a time, yyyy-mm-dd."""
    return str(np.datetime64(int(time_ms), "ms").astype("datetime64[D]"))

"""The composition root: settings → adapters → one Service that the routes are given.

Everything that connects, reads or runs in the background is built here and started by `start`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import orjson
import structlog

from afterclick.events import Action
from afterclick.quarantine import QuarantineLimits
from afterclick.settings import Settings
from afterclick.state import StateChange
from serving.control.api_keys import KeyRing
from serving.control.catalogue_copy import CatalogueCopy
from serving.control.control_plane import ControlPlane
from serving.control.request_log import RequestLog
from serving.control.rules import RuleBook
from serving.control.store import Database
from serving.control.users import Users
from serving.control.write_behind import WrittenBehind
from serving.event_loop_lag import Pulse
from serving.events.exposure import Exposure
from serving.events.feedback import FeedbackLog
from serving.events.impressions import ImpressionLog
from serving.live_stats import Figures
from serving.monitoring import Metrics
from serving.push import Hub, cause_of
from serving.ranking.remembered import Kept, RecommendationRequest
from serving.recent_requests import RecentRequests
from serving.recommender import Answer, Recommender
from serving.state.dead_letter_reader import DeadLetters
from serving.state.history import OnlineStore
from serving.state.item_catalogue import Catalogue, TextSearch
from serving.state.kafka_reader import TopicReader
from serving.state.live_trends import TrendFeed
from serving.state.loaded_models import LoadedModel, ModelFeed, ModelStore, no_model
from serving.state.log_waiters import PositionWaiters
from serving.state.snapshot import SnapshotStore

log = structlog.get_logger()


@dataclass(eq=False)
class Service:
    """Every adapter of one process. Build it with `of`, inside or outside a loop; `start` needs the loop."""

    settings: Settings
    store: OnlineStore
    feed: TrendFeed
    catalogue: Catalogue
    models: ModelFeed
    snapshots: SnapshotStore
    recommender: Recommender
    hub: Hub
    waiters: PositionWaiters
    metrics: Metrics
    readers: tuple[TopicReader, ...]
    feedback: FeedbackLog
    impressions: ImpressionLog
    letters: DeadLetters
    figures: Figures
    plane: ControlPlane
    requests: RequestLog
    users: Users
    behind: WrittenBehind
    pulse: Pulse
    search: TextSearch = field(default_factory=TextSearch)
    exposure: Exposure = field(default_factory=Exposure)
    kept: Kept = field(default_factory=Kept)
    recent: RecentRequests = field(default_factory=RecentRequests)
    draining: bool = False
    _loop: asyncio.AbstractEventLoop | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    def of(cls, settings: Settings) -> Service:
        """Wire the parts. Nothing connects yet, except the producer's threads."""
        kafka, topics = settings.kafka, settings.kafka.topics
        hub, metrics, catalogue = Hub(), Metrics(), Catalogue()
        waiters = PositionWaiters(settings.serving.after_s)
        database = Database(settings.database)
        store = OnlineStore(settings.redis, settings.stream.history_length)
        feed = TrendFeed(settings, lambda changes: service.hear(changes))
        rules, letters = RuleBook(catalogue), DeadLetters(kafka)
        bounds = QuarantineLimits(
            settings.serving.quarantine_slack, settings.serving.quarantine_free
        )
        pulse = Pulse()
        snapshots = SnapshotStore(feed, catalogue, no_model(), rules, bounds)
        kept = ModelStore(
            settings.training.store or str(settings.artifacts), settings.home / "fetched"
        )
        models = ModelFeed(lambda loaded: service.use(loaded), snapshots.use_beside, kept)
        items = TopicReader(
            kafka.bootstrap, topics.items, lambda read: copy.take(catalogue.read(read))
        )
        copy, users = CatalogueCopy(catalogue, items.caught_up.is_set), Users()
        readers = (
            items,
            TopicReader(kafka.bootstrap, topics.models, models.read),
        )
        service = cls(
            settings=settings,
            store=store,
            feed=feed,
            catalogue=catalogue,
            models=models,
            snapshots=snapshots,
            recommender=Recommender(
                store,
                snapshots,
                feed,
                catalogue,
                waiters,
                settings.stream.weights,
                late=lambda began: pulse.late_ms(began) > settings.serving.busy_ms,
                remember_s=settings.serving.remember_s,
            ),
            hub=hub,
            waiters=waiters,
            metrics=metrics,
            readers=readers,
            feedback=FeedbackLog(kafka),
            impressions=ImpressionLog(kafka),
            letters=letters,
            figures=Figures(settings, feed, snapshots, hub, metrics, letters),
            plane=ControlPlane(
                database, rules, KeyRing(settings.serving), snapshots.wake, models.want
            ),
            requests=RequestLog(database, settings.serving.request_log_days),
            users=users,
            behind=WrittenBehind(database, (copy, users)),
            pulse=pulse,
        )
        metrics.follow(
            service.requests,
            {
                "impressions": lambda: service.impressions.dropped,
                "live_messages": lambda: service.hub.dropped,
                "experiment_counts": lambda: service.plane.trials.dropped,
            },
        )
        return service

    async def recommend(self, ask: RecommendationRequest) -> Answer:
        """A list, counted and logged as shown unless it is a preview; its JSON."""
        if not ask.interests and (named := self.users.interests.get(ask.user_id)):
            ask = replace(ask, interests=named)
        assigned = None if ask.settled else self.plane.assignment.of(ask.user_id)
        if assigned is not None:
            ask = replace(ask, options=assigned.options)
        answer = await self.recommender.recommend(ask)
        body, shown = answer.body, answer.shown
        if assigned is not None:
            body["experiment"] = {"name": assigned.experiment, "arm": assigned.arm}
            wanted = assigned.options.model
            if wanted is not None and body["model_version"] != wanted:
                body["experiment"]["fallback"] = f"model {wanted}: {self.models.why_not(wanted)}"
        if ask.preview:
            return {**body, "impression_id": None}
        if assigned is not None:
            self.plane.trials.shown(body["impression_id"], ask.user_id, assigned)
        self.metrics.listed(body["source"], body["degraded"], body["brief"], answer.remembered)
        self.exposure.shown(
            body["impression_id"], body["source"], body["model_version"], shown.count
        )
        self.impressions.append(answer)
        self.kept.put(answer)
        return body

    def reacted(self, impression_id: str | None, item_id: str, action: Action) -> None:
        """Somebody acted on an item of a list that went out."""
        self.exposure.reacted(impression_id, action, self.kept.place(impression_id, item_id))
        self.plane.trials.reacted(impression_id, action)

    async def start(self) -> None:
        """Begin to follow the topics. Answers are possible at once, and get better as things load."""
        self._loop = asyncio.get_running_loop()
        self.pulse.start()
        await asyncio.to_thread(self.plane.look)  # who may ask has to be known before anybody asks
        self.feed.start()
        for reader in self.readers:
            reader.start()
        self.models.start()
        self.snapshots.start()
        self.plane.start()
        self.requests.start()
        self.behind.start()
        self._tasks.append(asyncio.create_task(self.figures.run(), name="figures"))

    async def stop(self) -> None:
        """Flush feedback and stop every thread, in seconds."""
        self.draining = True
        self.pulse.stop()
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        stops = (
            self.feed.stop,
            self.models.stop,
            self.snapshots.stop,
            self.feedback.close,
            self.impressions.close,
            self.letters.close,
            self.plane.stop,
            self.requests.stop,
            self.behind.stop,
        )
        await asyncio.gather(
            *(asyncio.to_thread(stop) for stop in stops + tuple(r.stop for r in self.readers))
        )
        self.plane.database.close()
        await self.store.close()

    def hear(self, changes: Sequence[StateChange]) -> None:
        """Changes from the feed's thread: on to the loop."""
        if self._loop is not None and not self._loop.is_closed():
            with suppress(RuntimeError):  # the loop closed in between
                self._loop.call_soon_threadsafe(self._deliver, changes)

    def use(self, loaded: LoadedModel) -> None:
        """A model from the loader's thread: its snapshot is built there too, then it serves."""
        self.snapshots.use(loaded)

    def _deliver(self, changes: Sequence[StateChange]) -> None:
        now_ms = time.time() * 1000
        self.metrics.saw(changes, now_ms)
        self.waiters.advance(self.feed.positions)
        for change in self.hub.deliver(changes):
            self.hub.broadcast(orjson.dumps(self._event(change, now_ms)))

    def _event(self, change: StateChange, now_ms: float) -> dict[str, object]:
        known = self.catalogue.items.get(change.item_id)
        title = self.catalogue.title(change.item_id)
        return {
            "type": "event",
            "user_id": change.user_id,
            **cause_of(change, title),
            "effect": change.effect,
            "time_ms": change.time_ms,
            "fresh_ms": round(now_ms - change.log_ms, 2),
            "categories": known.categories if known else (),
        }

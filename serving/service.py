"""The composition root: settings → adapters → one Service, which the routes receive.

The constructor builds and connects every part; `start` starts those that read, write or run in the
background, and `stop` stops them.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, TypeVar

import orjson
from confluent_kafka import Message

from afterclick.api import Policy
from afterclick.arrays import Json
from afterclick.events import SESSION
from afterclick.io.background import BackgroundLoop, Heartbeat, HeartbeatMonitor
from afterclick.io.connections import ConnectionLimits, Slots
from afterclick.io.forgotten import publish_forgotten
from afterclick.io.libc import trim_heap
from afterclick.quarantine import QuarantineLimits
from afterclick.settings import ServingSettings, Settings
from afterclick.state import LogPosition, StateChange
from serving.control.api_keys import ApiKeyStore
from serving.control.catalogue_copy import CatalogueCopy
from serving.control.control_plane import ControlPlane
from serving.control.erasure import UserEraser
from serving.control.experiments import Assigned
from serving.control.request_log import RequestLog
from serving.control.rules import RuleBook
from serving.control.store import Database
from serving.control.user_tokens import UserTokens
from serving.control.users import InactiveFor, UserDirectory
from serving.control.write_behind import WriteBehind
from serving.events.experiment_counts import SETTLE_S, ExperimentCounter
from serving.events.exposures import ExposureReader, ExposureReport, SentLists
from serving.events.feedback import AckTimeouts, FeedbackLog, MergedSession, copy_of
from serving.events.impressions import ImpressionLog
from serving.live_stats import LiveStats
from serving.monitoring import EventLoopLag, Metrics, merged_text
from serving.peers import Peers, Shared
from serving.push import Hub, cause_of
from serving.recommender import Recommender, RecommenderConfig
from serving.request import Options, RecommendationRequest
from serving.response_cache import (
    MAX_IMPRESSION_BYTES,
    ImpressionCache,
    Recommendation,
    first_known,
)
from serving.state.history import OnlineStore, forget_entries
from serving.state.item_catalogue import Catalogue
from serving.state.kafka_reader import TopicReader
from serving.state.live_transitions import ContactFeed
from serving.state.live_trends import PositionWaiters, TrendFeed
from serving.state.loaded_models import ModelFeed, ModelStore, no_model
from serving.state.snapshot_builder import SnapshotSources, SnapshotStore

LIVE_STATS_S = 1.0
HEARTBEATS_S = 1.0
PUBLISH_S = 5.0
"""Time limit for Kafka to acknowledge a request to erase a user."""
REQUEST_S = 30.0
"""Longer than any request that reads a history."""
WARM_S = 30.0
"""How long a worker that replaces another may load its state before it serves."""
WARM_POLL_S = 0.05
T = TypeVar("T")


@dataclass(frozen=True)
class ServingTimings:
    """Intervals and timeouts in seconds that are not settings; tests shorten them."""

    ack: AckTimeouts = field(default_factory=AckTimeouts)
    push_retry_s: float = 1.0
    """How often a WebSocket retries a list made without history or model."""
    reauthenticate_s: float = 5.0
    """How often a WebSocket checks that its key or token is still valid."""
    settle_s: float = SETTLE_S
    """How long after a reaction experiments count it."""


class Background(Protocol):
    """Runs between `start` and `stop`; `stop` blocks for seconds at most."""

    heartbeat: Heartbeat

    def start(self) -> None: ...
    def stop(self) -> None: ...


class Service:
    """Every part of one API process. `start` needs the running event loop."""

    def __init__(
        self,
        settings: Settings,
        timings: ServingTimings | None = None,
        peers: Peers | None = None,
    ) -> None:
        """Build the parts. Connects to nothing yet, except the threads of Kafka's clients."""
        self.settings, self.timings = settings, timings or ServingTimings()
        self.peers = peers or Peers()
        self.draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sending: asyncio.Future[None] | None = None
        """Of live statistics."""
        self._trimmed = False
        self._build_state()
        self._build_control()
        self._build_events()
        self._connect()

    def _build_state(self) -> None:
        settings, serving = self.settings, self.settings.serving
        self.catalogue = Catalogue()
        self.requests = RequestLog(serving.request_log_days, serving.request_log_rows)
        days = settings.stream.session_ttl_days, settings.stream.user_ttl_days
        self.users = UserDirectory(keep=InactiveFor(*(timedelta(days=n) for n in days)))
        self.eraser = UserEraser((self.requests, self.users), self._on_forgotten)
        self.store = OnlineStore(
            settings.redis, settings.stream.history_length, self.eraser.until_ms
        )
        self.feed = TrendFeed(settings, self.on_changes)
        self.contacts = ContactFeed(settings, self.eraser.is_forgotten)
        self.rules = RuleBook(self.catalogue)
        kafka, topics = settings.kafka, settings.kafka.topics
        self.item_reader = TopicReader(kafka, topics.items, self._on_items)
        limits = QuarantineLimits(serving.quarantine_max_ratio, serving.quarantine_allowance)
        sources = SnapshotSources(
            self.feed,
            self.catalogue,
            self.rules,
            limits,
            hides_unknown=self._hides_unknown,
            contacts=self.contacts,
        )
        self.snapshots = SnapshotStore(sources, no_model())
        store = settings.training.store or str(settings.artifacts)
        self.models = ModelFeed(
            self.snapshots.use,
            self.snapshots.use_in_experiments,
            ModelStore(store, settings.home / "fetched", mapped=serving.workers > 1),
        )
        self.model_reader = TopicReader(kafka, topics.models, self.models.read)
        self.forgotten_reader = TopicReader(kafka, topics.forgotten, self.eraser.read)
        self.waiters = PositionWaiters(serving.after_s)
        self.lag = EventLoopLag()
        self.recommender = Recommender(
            self.store,
            self.snapshots,
            self.feed,
            self.waiters,
            replace(
                RecommenderConfig.of(settings),
                overloaded=lambda began: self.lag.lag_ms(began) > serving.shed_after_ms,
            ),
        )

    def _build_control(self) -> None:
        serving = self.settings.serving
        self.database = Database(self.settings.database)
        keys = ApiKeyStore(serving, self.settings.home)
        self.control = ControlPlane(self.database, self.rules, keys, UserTokens(serving))
        self.copy = CatalogueCopy(self.catalogue, self.item_reader.caught_up.is_set)

    def _build_events(self) -> None:
        settings = self.settings
        self.hub, self.metrics = Hub(), Metrics()
        self._build_limits()
        self.feedback = FeedbackLog(settings.kafka, self.timings.ack)
        self.impressions = ImpressionLog(settings.kafka)
        self.sent_lists, self.exposures = SentLists(), ExposureReader(settings)
        self.sent = ImpressionCache(MAX_IMPRESSION_BYTES // settings.serving.workers)
        self.counter = ExperimentCounter(
            settings,
            self.database,
            self.timings.settle_s,
            self.eraser,
            self.forgotten_reader.caught_up.is_set,
        )
        self.stats = LiveStats(settings, self.feed, self.snapshots, self.hub, self.metrics)
        self._share()

    def _share(self) -> None:
        """What all workers of this API hold together: see docs/decisions/0036-workers.md."""
        peers, number = self.peers, self.peers.number
        self.impression = Shared(peers, "impression", self.sent.get, first_known)
        self.all_sent = Shared(peers, "sent", self.sent_lists.report, SentLists.merge)
        self.all_requests = Shared(peers, "requests", self.requests.recent, RequestLog.newest)
        self.all_metrics = Shared(
            peers, "metrics", lambda: (number, self.metrics.text().decode()), merged_text
        )
        self.all_stats = Shared(peers, "stats", self.stats.of_worker, self.stats.now)
        self.workers = Shared(peers, "workers", self._worker, list)
        peers.answer("read-sql", self._read_sql)

    def _build_limits(self) -> None:
        serving = _per_worker(self.settings.serving)
        self.connections = ConnectionLimits.of(serving, serving.proxies)
        self.websockets = Slots(
            user=serving.max_websockets_per_user,
            address=serving.max_websockets_per_address,
            total=serving.max_websockets,
        )
        self.metrics.observe_limits(
            self.connections, websockets=self.websockets, worker_calls=self.recommender.waiting
        )

    def _connect(self) -> None:
        """Connect the parts to each other."""
        self.control.on_rules = self.snapshots.wake
        self.control.on_models = self.models.request
        parts = (self.eraser, self.control, self.users, self.copy, self.requests)
        self._background: tuple[Background, ...] = (
            self.feed,
            self.contacts,
            self.item_reader,
            self.model_reader,
            self.forgotten_reader,
            self.models,
            self.snapshots,
            self.feedback,
            self.impressions,
            self.counter,
            WriteBehind(self.database, parts),
            BackgroundLoop("live-stats", self._refresh_stats, LIVE_STATS_S),
        )
        self.monitor = HeartbeatMonitor([part.heartbeat for part in self._background])
        self.stats.own_loops = self.monitor.heartbeats
        self.stats.worker = self.peers.number if self.peers.count > 1 else None
        self._monitoring = BackgroundLoop("heartbeats", self.monitor.check, HEARTBEATS_S)
        self._observe()

    def _observe(self) -> None:
        """Add what is read when metrics are scraped."""
        dropped: dict[str, Callable[[], int]] = {
            "impressions": lambda: self.impressions.dropped,
            "live_messages": lambda: self.hub.dropped,
        }
        self.metrics.observe(
            "afterclick_dropped", "Dropped for lack of room in a buffer.", "what", dropped
        )
        pending = self.requests.pending
        rows: dict[str, Callable[[], int]] = {
            "written": lambda: pending.written,
            "dropped": lambda: pending.dropped,
            "waiting": lambda: len(pending),
            "unauthenticated": lambda: self.requests.unauthenticated,
        }
        self.metrics.observe(
            "afterclick_request_log_rows", "Rows of the request log.", "state", rows
        )
        graph: dict[str, Callable[[], int]] = {
            "items": lambda: self.snapshots.transition_sizes[0],
            "pairs": lambda: self.snapshots.transition_sizes[1],
            "events": lambda: len(self.contacts),
            "users": lambda: self.contacts.users,
        }
        self.metrics.observe(
            "afterclick_live_transitions", "Size of the live transition graph.", "what", graph
        )
        for beat in self.monitor.heartbeats:
            age = self.metrics.heartbeat_age.labels(beat.name)
            age.set_function(partial(getattr, beat, "age_s"))

    async def start(self) -> None:
        """Start the background parts. Responses are possible, and improve as state loads."""
        self._loop = asyncio.get_running_loop()
        self.lag.start()
        await asyncio.to_thread(self.control.load)  # the first request needs the API keys
        for part in (*self._background, self._monitoring):
            part.start()
        if self.peers.replaces_another:
            await self._warm()
        await self.peers.start()

    async def _warm(self) -> None:
        """Wait until lists are as good as those of the other workers, for `WARM_S` at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(WARM_S):
                while not self._is_warm():
                    await asyncio.sleep(WARM_POLL_S)

    def _is_warm(self) -> bool:
        """Whether trends, catalogue and the newest model are loaded and in the snapshot."""
        readers = self.item_reader, self.model_reader
        read = self.feed.loaded and all(reader.caught_up.is_set() for reader in readers)
        published = self.models.published
        newest = published[-1].version if published else None
        snapshot = self.snapshots.current
        served = (snapshot.loaded.version or None) == newest or newest in self.models.rejected
        return read and served and (bool(snapshot.counts.any()) or not len(self.feed.table))

    async def stop(self) -> None:
        """Flush feedback, impressions and SQL, and stop every thread, in seconds."""
        self.draining = True
        self.lag.stop()
        await self.peers.stop()
        parts = (*self._background, self._monitoring)
        await asyncio.gather(*(asyncio.to_thread(part.stop) for part in parts))
        for close in (self.stats.close, self.exposures.close, self.database.close):
            await asyncio.to_thread(close)
        self.recommender.close()
        await self.store.close()

    async def recommend(self, request: RecommendationRequest) -> Json:
        """A list as JSON; counted and logged as shown, unless it is a preview."""
        if request.preview:
            return {**(await self._make(request)).body, "impression_id": None}
        recommendation = await self.push(request)
        self.on_shown(recommendation)
        return recommendation.body

    async def push(self, request: RecommendationRequest) -> Recommendation:
        """A list to send. It counts as shown only with `on_shown`, when the user has seen it."""
        recommendation = await self._make(request)
        body = recommendation.body
        self.metrics.on_list(
            body["source"], body["degraded"], body["reduced"], recommendation.cached
        )
        self.sent_lists.add(body["source"], body["model_version"])
        self.sent.put(recommendation)
        return recommendation

    def on_shown(self, recommendation: Recommendation) -> None:
        """Log a list that the user has seen: the stream counts it."""
        self.impressions.append(recommendation)
        self.recommender.on_shown(recommendation)

    async def exposure(self, days: int, experiment: str | None) -> Json:
        """Lists shown in the last `days` days, and reactions to them. Raises Unavailable."""
        report = ExposureReport(await self.all_sent.read(), experiment)
        for counts in await asyncio.to_thread(self.exposures.read, days):
            report.add(counts)
        return report.as_json()

    def on_changes(self, changes: Sequence[StateChange]) -> None:
        """Forward state changes from their reader's thread to the event loop."""
        self._call_in_loop(lambda: self._deliver(changes))

    async def forget(self, user_id: str) -> int:
        """Request that a user is erased; the event time ms up to which.

        That is now, or the user's newest event if that is later. This process forgets the user on
        return, others within a second. Raises Unavailable.
        """
        newest = await self.store.history(user_id, 1)
        known = (self.eraser.until_ms.get(user_id, 0), *(entry.time_ms for entry in newest))
        until_ms = max(math.ceil(time.time() * 1000), *known)
        kafka = self.settings.kafka
        await asyncio.to_thread(publish_forgotten, kafka, user_id, until_ms, PUBLISH_S)
        await asyncio.to_thread(self.eraser.forget, {user_id: until_ms})
        return until_ms

    async def merge_session(
        self, session_id: str, user_id: str, after: LogPosition | None = None
    ) -> MergedSession:
        """Copy the events of a session to its user's history, each once however often it is called.

        `after`: wait until this event is in the state. Raises Unavailable if Kafka or Redis does
        not respond.
        """
        fresh = after and await self.waiters.reached(after, self.feed.positions)
        entries = await self.store.history(SESSION + session_id)
        copies = [copy_of(entry, session_id, user_id) for entry in reversed(entries)]
        positions = await asyncio.gather(*map(self.feedback.append, copies))
        if copies:
            self.users.seen(user_id)
        return MergedSession(len(copies), positions[-1] if positions else None, fresh)

    def _on_forgotten(self, forgotten: Mapping[str, int]) -> None:
        """Evict users from the caches of this process, and again after the requests in flight."""
        self.contacts.forget(forgotten)
        self._call_in_loop(lambda: self._evict(forgotten))

    def _evict(self, forgotten: Mapping[str, int], again: bool = True) -> None:
        self.recommender.forget(forgotten)
        self.sent.forget(forgotten)
        self.hub.forget(forgotten)
        self.requests.forget_recent(forgotten)
        forget_entries()
        if again and self._loop is not None:
            self._loop.call_later(REQUEST_S, self._evict, forgotten, False)

    async def _make(self, request: RecommendationRequest) -> Recommendation:
        request, assigned = self._assign(self._with_interests(request))
        recommendation = await self.recommender.recommend(request)
        if assigned is not None:
            recommendation.body["experiment"] = self._experiment(assigned, recommendation)
        return recommendation

    def _with_interests(self, request: RecommendationRequest) -> RecommendationRequest:
        """Add the interests that the user named, if the request names none."""
        interests = self.users.interests_of(request.user_id)
        if request.interests or not interests:
            return request
        return replace(request, interests=interests)

    def _assign(
        self, request: RecommendationRequest
    ) -> tuple[RecommendationRequest, Assigned | None]:
        """Apply the options of the user's experiment, unless the request names a policy."""
        assigned = None if request.policy_pinned else self.control.assignment.of(request.user_id)
        return (replace(request, options=assigned.options) if assigned else request), assigned

    def _experiment(self, assigned: Assigned, recommendation: Recommendation) -> Json:
        experiment = {"name": assigned.experiment, "arm": assigned.arm}
        fallback = self._fallback(assigned.options, recommendation)
        return experiment | ({"fallback": fallback} if fallback else {})

    def _fallback(self, options: Options, recommendation: Recommendation) -> str | None:
        """Why a list was not made with the options of its arm; None if it was."""
        body = recommendation.body
        if options.model is not None and body["model_version"] != options.model:
            return f"model {options.model}: {self.models.unavailable_reason(options.model)}"
        if body["degraded"]:
            return "the user's history is unavailable"
        model = self.snapshots.of(options.model).loaded.model
        parts = {Policy.ALS: "factors", Policy.TWO_TOWER: "towers", Policy.NCF: "ncf"}
        needed = parts.get(options.policy)
        if needed and getattr(model, needed, None) is None:
            return f"the model has no {needed}"
        return None

    def _hides_unknown(self) -> bool:
        """Whether items beyond the catalogue are hidden: once its topic was read to the end."""
        known = self.item_reader.caught_up.is_set() and len(self.catalogue) > 0
        return known and not self.settings.serving.unknown_items

    def _on_items(self, messages: Sequence[Message]) -> None:
        self.copy.take(self.catalogue.read(messages))

    async def in_force(self, change: Callable[..., T], *arguments: Any) -> T:
        """Make a change in SQL; on return it is in force in every worker that answers."""
        result = await asyncio.to_thread(change, *arguments)
        await self.peers.ask("read-sql")
        return result

    async def _read_sql(self) -> None:
        """Read what another worker has changed in SQL."""
        for read in (self.control.sync, self.users.read):
            await asyncio.to_thread(read, self.database)

    def _worker(self) -> Json:
        """The state of this worker."""
        snapshot = self.snapshots.current
        return {
            "number": self.peers.number,
            "pid": os.getpid(),
            "ready": self.feed.loaded and not self.draining,
            "model": snapshot.loaded.version or None,
            "catalogue": len(self.catalogue),
            "items": len(snapshot.trend_score),
            "frozen": self.stats.frozen_here(),
        }

    def _refresh_stats(self) -> None:
        self.stats.refresh()
        self.stats.publish_models(self.models.in_use)
        self._call_in_loop(self._broadcast_stats)
        if not self._trimmed and self._is_warm():
            self._trimmed = True
            trim_heap()  # loading leaves a fifth of the memory unused

    def _broadcast_stats(self) -> None:
        if self.hub.live and (self._sending is None or self._sending.done()):
            self._sending = asyncio.ensure_future(self._send_stats())

    async def _send_stats(self) -> None:
        self.hub.broadcast(orjson.dumps(await self.all_stats.read()))

    def _call_in_loop(self, call: Callable[[], None]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            with suppress(RuntimeError):  # closed in between
                self._loop.call_soon_threadsafe(call)

    def _deliver(self, changes: Sequence[StateChange]) -> None:
        now_ms = time.time() * 1000
        self.metrics.on_changes(changes, now_ms)
        self.waiters.advance(self.feed.positions)
        hides, known = self._hides_unknown(), self.catalogue
        for change in self.hub.deliver(changes):
            if change.item_id in known or not hides:
                self.hub.broadcast(orjson.dumps(self._live_event(change, now_ms)))

    def _live_event(self, change: StateChange, now_ms: float) -> Json:
        item = self.catalogue.get(change.item_id)
        return {
            "type": "event",
            "user_id": change.user_id,
            **cause_of(change, self.catalogue.title(change.item_id)),
            "effect": change.effect,
            "time_ms": change.time_ms,
            "fresh_ms": round(now_ms - change.log_ms, 2),
            "categories": item.categories if item else (),
        }


def _per_worker(serving: ServingSettings) -> ServingSettings:
    """With this worker's share of the limits that hold for all workers together."""
    divided = (
        "max_connections",
        "max_connections_per_address",
        "max_websockets",
        "max_websockets_per_address",
    )
    shares = {name: math.ceil(getattr(serving, name) / serving.workers) for name in divided}
    return serving.model_copy(update=shares)

"""Write feedback to its topic; a request continues once Kafka has acknowledged the record.

writes  topic  feedback, and reviews for reviews

`KafkaHealth` is an adaptive failure detector: an acknowledgement that takes ten times its usual
latency triggers a probe. A Kafka that is slow but answers the probe is waited for.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message

from afterclick import events
from afterclick.errors import Unavailable
from afterclick.events import SESSION, Interaction, InteractionEvent, ReviewEvent
from afterclick.io.background import Heartbeat
from afterclick.io.kafka_clients import ConnectionErrors, create_producer
from afterclick.settings import KafkaSettings
from afterclick.state import HistoryEntry, LogPosition
from afterclick.topics import PARTITIONER
from serving.state.history import PROBE_INTERVAL_S, CircuitBreaker

_LATE = 10
"""Times the usual latency."""
_SMOOTHING = 0.05


@dataclass(frozen=True)
class AckTimeouts:
    """Seconds around acknowledgements by Kafka."""

    ack_s: float = 2.0
    """How long a request waits before it answers 503."""
    doubt_s: float = 0.1
    """Probe Kafka if an ack takes longer than max(this, 10 x its usual latency)."""
    probe_s: float = 0.15
    """How long Kafka may take to answer a probe: max(this, 10 x the usual latency)."""
    usual_s: float = 0.05
    """Assumed latency before the first ack, which is slow."""


class KafkaHealth:
    """`check` belongs to the thread that polls the producer, the rest to the event loop."""

    def __init__(self, probe: Callable[[float], None], timeouts: AckTimeouts) -> None:
        """`probe(timeout_s)` raises KafkaException if Kafka does not answer in time."""
        self._probe, self._timeouts = probe, timeouts
        self._breaker = CircuitBreaker("Kafka")
        self._usual_s = timeouts.usual_s
        self._disconnected = False
        self._probed_at = 0.0

    @property
    def down(self) -> bool:
        """Whether Kafka is known to be down."""
        return self._breaker.open

    def acknowledged(self, latency_s: float) -> None:
        """Kafka acknowledged a record."""
        self._breaker.on_success()
        self._usual_s += _SMOOTHING * (latency_s - self._usual_s)

    def failed(self, error: Exception) -> None:
        """A record was not acknowledged."""
        self._breaker.on_failure(error)

    def disconnected(self) -> None:
        """All connections were lost; idle ones may have been closed by the broker."""
        self._disconnected = True

    def check(self, oldest_at: float | None) -> KafkaException | None:
        """Probe if in doubt; the error if Kafka is down.

        `oldest_at` is when the oldest record without acknowledgement was sent (time.monotonic).
        """
        now = time.monotonic()
        late_s = self._late_s(self._timeouts.doubt_s)
        overdue = oldest_at is not None and now - oldest_at > late_s
        interval_s = PROBE_INTERVAL_S if self.down else late_s
        due = (self.down or overdue) and now - self._probed_at > interval_s
        if not (self._disconnected or due):
            return None
        self._disconnected = False
        try:
            self._probe(self._late_s(self._timeouts.probe_s))
        except KafkaException as error:
            self._breaker.trip(error)
            return error
        finally:
            self._probed_at = time.monotonic()
        if self.down:
            self._breaker.on_success()
        return None

    def _late_s(self, least_s: float) -> float:
        return min(max(least_s, _LATE * self._usual_s), self._timeouts.ack_s)


DOWN = "Kafka does not accept feedback now; send it again with its event_id"
_POLL_S = 0.03


class FeedbackLog:
    """An idempotent producer whose delivery reports complete the waiting requests.

    While Kafka is down, requests fail without a delay, and a probe per second detects its return.
    """

    def __init__(self, settings: KafkaSettings, timeouts: AckTimeouts | None = None) -> None:
        self._topics = settings.topics
        self._timeouts = timeouts or AckTimeouts()
        self._waiting: dict[asyncio.Future[LogPosition], float] = {}
        errors = ConnectionErrors(settings, self._on_error)
        self._producer = create_producer(settings, _options(self._timeouts.ack_s), errors)
        self.health = KafkaHealth(self._probe, self._timeouts)
        self.sent = 0
        """Records handed to the producer."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="feedback-reports", daemon=True)
        self.heartbeat = Heartbeat("feedback-reports")

    def start(self) -> None:
        self.heartbeat.beat()
        self._thread.start()

    async def append(self, event: InteractionEvent) -> LogPosition:
        """Write the event; its position once all in-sync replicas have it.

        Raises Unavailable without an acknowledgement in time, and immediately while Kafka is
        known to be down. The event may still be written: the same event id takes effect once.
        """
        if self.health.down:
            raise Unavailable(DOWN)
        topic = self._topics.reviews if isinstance(event, ReviewEvent) else self._topics.feedback
        loop = asyncio.get_running_loop()
        acked: asyncio.Future[LogPosition] = loop.create_future()

        def report(error: KafkaError | None, message: Message) -> None:
            loop.call_soon_threadsafe(_settle, acked, error, message)

        sent_at = self._waiting[acked] = time.monotonic()
        self.sent += 1
        try:
            self._producer.produce(
                topic, events.encode(event), event.data.user_id, on_delivery=report
            )
            async with asyncio.timeout(self._timeouts.ack_s):
                position = await acked
        except (BufferError, KafkaException, TimeoutError) as error:
            self.health.failed(error)
            raise Unavailable(DOWN) from error
        finally:
            del self._waiting[acked]
        self.health.acknowledged(time.monotonic() - sent_at)
        return position

    def stop(self, timeout_s: float = 3.0) -> None:
        """Flush for at most `timeout_s`, and end the thread."""
        self._producer.flush(timeout_s)
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def _poll(self) -> None:
        while not self._stop.is_set():
            self.heartbeat.beat()
            self._producer.poll(_POLL_S)
            error = self.health.check(next(iter(tuple(self._waiting.values())), None))
            if error is not None:
                self._fail_waiting(error)
        self.heartbeat.beat(None)

    def _fail_waiting(self, error: KafkaException) -> None:
        for acked in tuple(self._waiting):
            with suppress(RuntimeError):  # its loop is closed
                acked.get_loop().call_soon_threadsafe(_settle, acked, error.args[0], None)

    def _probe(self, timeout_s: float) -> None:
        self._producer.list_topics(self._topics.feedback, timeout=timeout_s)

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.health.disconnected()


def event_of(
    interaction: Interaction, event_id: str | None, time: datetime | None, *, admin: bool
) -> InteractionEvent:
    """The event for the feedback of one request; an administrator's `time` is trusted."""
    now = events.now()
    return events.interaction_event(
        interaction,
        event_id=event_id or events.new_id(),
        time=time or now,
        source=f"{events.IMPORT_SOURCE}api" if admin and time else events.API_SOURCE,
        produced=now,
    )


class MergedSession(NamedTuple):
    """What a user got of a session."""

    events: int
    position: LogPosition | None
    """Of the last copy."""
    fresh: bool | None
    """Whether the event to wait for was in the state in time; None without one."""


def copy_of(entry: HistoryEntry, session_id: str, user_id: str) -> InteractionEvent:
    """The copy of a session's event for its user: the same one gives the same event id."""
    interaction = Interaction(
        user_id=user_id,
        item_id=entry.item_id,
        action=entry.action,
        rating=entry.rating,
        session_id=session_id,
    )
    return events.interaction_event(
        interaction,
        event_id=events.stable_id(SESSION, session_id, entry.event_id),
        time=datetime.fromtimestamp(entry.time_ms / 1000, UTC),
        source=events.SESSION_SOURCE,
        produced=events.now(),
    )


def _settle(
    acked: asyncio.Future[LogPosition], error: KafkaError | None, message: Message | None
) -> None:
    if acked.done():
        return
    if message is None or error is not None:
        acked.set_exception(KafkaException(error))
        return
    acked.set_result(
        LogPosition(str(message.topic()), int(message.partition() or 0), int(message.offset() or 0))
    )


def _options(ack_s: float) -> dict[str, object]:
    return {
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": PARTITIONER,
        "linger.ms": 0,
        "message.timeout.ms": int(ack_s * 1000),
        "request.timeout.ms": int(ack_s * 1000),
        "queue.buffering.max.messages": 10_000,
        "reconnect.backoff.max.ms": 1000,
    }

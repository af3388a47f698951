"""Write feedback to its topic; a request continues once Kafka has acknowledged the record.

writes  topic  feedback, and reviews for reviews
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from datetime import datetime

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from afterclick import events
from afterclick.errors import Unavailable
from afterclick.events import Interaction, InteractionEvent, ReviewEvent
from afterclick.settings import KafkaSettings
from afterclick.state import LogPosition
from afterclick.topics import PARTITIONER
from serving.events.kafka_health import AckTimeouts, KafkaHealth

DOWN = "Kafka does not accept feedback now; send it again with its event_id"
SOURCE = "afterclick/api"
_POLL_S = 0.03


class FeedbackLog:
    """An idempotent producer whose delivery reports complete the waiting requests.

    While Kafka is down, requests fail without a delay, and a probe per second detects its return.
    """

    def __init__(self, settings: KafkaSettings, timeouts: AckTimeouts | None = None) -> None:
        self._topics = settings.topics
        self._timeouts = timeouts or AckTimeouts()
        self._waiting: dict[asyncio.Future[LogPosition], float] = {}
        config = _config(settings.bootstrap, self._timeouts.ack_s)
        self._producer = Producer(config | {"error_cb": self._on_error})
        self.health = KafkaHealth(self._probe, self._timeouts)
        self.sent = 0
        """Records handed to the producer."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="feedback-reports", daemon=True)

    def start(self) -> None:
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
            self._producer.poll(_POLL_S)
            error = self.health.check(next(iter(tuple(self._waiting.values())), None))
            if error is not None:
                self._fail_waiting(error)

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
    interaction: Interaction, event_id: str | None, time: datetime | None
) -> InteractionEvent:
    """The event for the feedback of one request."""
    now = events.now()
    return events.interaction_event(
        interaction,
        event_id=event_id or events.new_id(),
        time=time or now,
        source=SOURCE,
        produced=now,
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


def _config(bootstrap: str, ack_s: float) -> dict[str, object]:
    return {
        "bootstrap.servers": bootstrap,
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": PARTITIONER,
        "linger.ms": 0,
        "message.timeout.ms": int(ack_s * 1000),
        "request.timeout.ms": int(ack_s * 1000),
        "queue.buffering.max.messages": 10_000,
        "reconnect.backoff.max.ms": 1000,
        "log_level": 0,
    }

"""Put feedback on its topic; the caller goes on once Kafka has it.

writes  topic  feedback, and reviews for reviews
"""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import datetime

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from afterclick import events
from afterclick.errors import Unavailable
from afterclick.events import Interaction, InteractionEvent, ReviewEvent
from afterclick.settings import KafkaSettings
from afterclick.topics import PARTITIONER
from serving.feeds.positions import Position
from serving.online.breaker import Breaker

WAIT_S = 2.0
"""How long Kafka may take to acknowledge before the client is told to try again."""
AWAY = "Kafka does not take feedback now; send it again with its event_id"
SOURCE = "afterclick/api"


class FeedbackLog:
    """An idempotent producer whose delivery reports wake the waiting request."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._topics = settings.topics
        self._producer = Producer(_config(settings.bootstrap))
        self._breaker = Breaker("Kafka")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="feedback-reports", daemon=True)
        self._thread.start()

    async def append(self, event: InteractionEvent) -> Position:
        """Write the event; its position once all in-sync replicas have it.

        Raises Unavailable when Kafka does not say so in time, at once where it is known to be away. The
        event may still arrive: the same event id sent again takes effect once.
        """
        if not self._breaker.allows(time.monotonic()):
            raise Unavailable(AWAY)
        topic = self._topics.reviews if isinstance(event, ReviewEvent) else self._topics.feedback
        loop = asyncio.get_running_loop()
        acked: asyncio.Future[Position] = loop.create_future()

        def report(error: KafkaError | None, message: Message) -> None:
            loop.call_soon_threadsafe(_settle, acked, error, message)

        try:
            self._producer.produce(topic, events.encode(event), event.data.user_id, on_delivery=report)
            async with asyncio.timeout(WAIT_S):
                position = await acked
        except (BufferError, KafkaException, TimeoutError) as error:
            self._breaker.failed(error)
            raise Unavailable(AWAY) from error
        self._breaker.worked()
        return position

    def close(self, timeout_s: float = 3.0) -> None:
        """Wait for what was handed in, then stop."""
        self._producer.flush(timeout_s)
        self._stop.set()
        self._thread.join(1.0)

    def _poll(self) -> None:
        while not self._stop.is_set():
            self._producer.poll(0.1)


def event_of(interaction: Interaction, event_id: str | None, time: datetime | None) -> InteractionEvent:
    """The event for one request's feedback."""
    now = events.now()
    return events.interaction_event(
        interaction, event_id=event_id or events.new_id(), time=time or now, source=SOURCE, produced=now
    )


def _settle(acked: asyncio.Future[Position], error: KafkaError | None, message: Message) -> None:
    if acked.done():
        return
    if error is not None:
        acked.set_exception(KafkaException(error))
        return
    acked.set_result(
        Position(str(message.topic()), int(message.partition() or 0), int(message.offset() or 0))
    )


def _config(bootstrap: str) -> dict[str, object]:
    return {
        "bootstrap.servers": bootstrap,
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": PARTITIONER,
        "linger.ms": 0,
        "message.timeout.ms": int(WAIT_S * 1000),
        "request.timeout.ms": int(WAIT_S * 1000),
        "queue.buffering.max.messages": 10_000,
        "reconnect.backoff.max.ms": 1000,
        "log_level": 0,
    }

"""Put feedback on its topic; the caller goes on once Kafka has it.

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
from afterclick.topics import PARTITIONER
from serving.feeds.positions import Position
from serving.online.breaker import AWAY_S, Breaker

WAIT_S = 2.0
"""How long Kafka may take to acknowledge before the client is told to try again."""
LOOK_S = 0.3
"""How long it may take to say that it is there."""
AWAY = "Kafka does not take feedback now; send it again with its event_id"
SOURCE = "afterclick/api"


class FeedbackLog:
    """An idempotent producer whose delivery reports wake the waiting request.

    While Kafka is away no request has to find out: the thread that hears of deliveries hears of lost
    connections too, tells who waits, and looks every second whether Kafka is back.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._topics = settings.topics
        self._breaker = Breaker("Kafka")
        self._waiting: set[asyncio.Future[Position]] = set()
        self._disconnected = False
        self._producer = Producer(_config(settings.bootstrap) | {"error_cb": self._lost})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="feedback-reports", daemon=True)
        self._thread.start()

    @property
    def away(self) -> bool:
        """Whether Kafka is known to be away, so that feedback is refused at once."""
        return self._breaker.open

    async def append(self, event: InteractionEvent) -> Position:
        """Write the event; its position once all in-sync replicas have it.

        Raises Unavailable when Kafka does not say so in time, at once where it is known to be away. The
        event may still arrive: the same event id sent again takes effect once.
        """
        if self.away:
            raise Unavailable(AWAY)
        topic = self._topics.reviews if isinstance(event, ReviewEvent) else self._topics.feedback
        loop = asyncio.get_running_loop()
        acked: asyncio.Future[Position] = loop.create_future()

        def report(error: KafkaError | None, message: Message) -> None:
            loop.call_soon_threadsafe(_settle, acked, error, message)

        self._waiting.add(acked)
        try:
            self._producer.produce(topic, events.encode(event), event.data.user_id, on_delivery=report)
            async with asyncio.timeout(WAIT_S):
                position = await acked
        except (BufferError, KafkaException, TimeoutError) as error:
            self._breaker.failed(error)
            raise Unavailable(AWAY) from error
        finally:
            self._waiting.discard(acked)
        self._breaker.worked()
        return position

    def close(self, timeout_s: float = 3.0) -> None:
        """Wait for what was handed in, then stop."""
        self._producer.flush(timeout_s)
        self._stop.set()
        self._thread.join(1.0)

    def _poll(self) -> None:
        looked = 0.0
        while not self._stop.is_set():
            self._producer.poll(0.1)
            if self._disconnected or (self._breaker.open and time.monotonic() - looked > AWAY_S):
                self._look()
                looked = time.monotonic()

    def _lost(self, error: KafkaError) -> None:
        """An error that concerns no message; a connection that was merely idle may be among them."""
        self._disconnected |= error.code() == KafkaError._ALL_BROKERS_DOWN

    def _look(self) -> None:
        """Ask whether Kafka is there."""
        self._disconnected = False
        try:
            self._producer.list_topics(self._topics.feedback, timeout=LOOK_S)
        except KafkaException as error:
            self._breaker.gone(error)
            for acked in tuple(self._waiting):
                with suppress(RuntimeError):  # its loop closed in between
                    acked.get_loop().call_soon_threadsafe(_settle, acked, error.args[0], None)
        else:
            if self._breaker.open:
                self._breaker.worked()


def event_of(interaction: Interaction, event_id: str | None, time: datetime | None) -> InteractionEvent:
    """The event for one request's feedback."""
    now = events.now()
    return events.interaction_event(
        interaction, event_id=event_id or events.new_id(), time=time or now, source=SOURCE, produced=now
    )


def _settle(acked: asyncio.Future[Position], error: KafkaError | None, message: Message | None) -> None:
    if acked.done():
        return
    if message is None or error is not None:
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

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
from serving.state.history import AWAY_S, Breaker
from serving.state.log_waiters import Position

WAIT_S = 2.0
"""How long Kafka may take to acknowledge before the client is told to try again."""
DOUBT_S = 0.1
"""An acknowledgement this late, and ten times as late as usual: a reason to look whether Kafka is there."""
LOOK_S = 0.15
"""How long it may then take to say so: this, or ten times what an acknowledgement usually takes."""
USUAL_S = 0.05
"""What an acknowledgement takes, as far as a process knows that has seen none; the first is slow."""
_LATE = 10
_POLL_S = 0.03
_MEMORY = 0.05
AWAY = "Kafka does not take feedback now; send it again with its event_id"
SOURCE = "afterclick/api"


class FeedbackLog:
    """An idempotent producer whose delivery reports wake the waiting request.

    While Kafka is away no request has to find out: the thread that hears of deliveries hears of lost
    connections too, and sees an acknowledgement that is late; it then looks whether Kafka is there, tells
    who waits if it is not, and looks every second whether it is back. A Kafka that is slow, but answers, is
    waited for.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._topics = settings.topics
        self._breaker = Breaker("Kafka")
        self._waiting: dict[asyncio.Future[Position], float] = {}
        self._usual_s = USUAL_S
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

        handed_in = self._waiting[acked] = time.monotonic()
        try:
            self._producer.produce(
                topic, events.encode(event), event.data.user_id, on_delivery=report
            )
            async with asyncio.timeout(WAIT_S):
                position = await acked
        except (BufferError, KafkaException, TimeoutError) as error:
            self._breaker.failed(error)
            raise Unavailable(AWAY) from error
        finally:
            del self._waiting[acked]
        self._breaker.worked()
        self._usual_s += _MEMORY * (time.monotonic() - handed_in - self._usual_s)
        return position

    def close(self, timeout_s: float = 3.0) -> None:
        """Wait for what was handed in, then stop."""
        self._producer.flush(timeout_s)
        self._stop.set()
        self._thread.join(1.0)

    def _poll(self) -> None:
        looked = 0.0
        while not self._stop.is_set():
            self._producer.poll(_POLL_S)
            due = AWAY_S if self._breaker.open else self._late_s(DOUBT_S)
            in_doubt = self._breaker.open or self._overdue()
            if self._disconnected or (in_doubt and time.monotonic() - looked > due):
                self._look()
                looked = time.monotonic()

    def _late_s(self, least_s: float) -> float:
        """What is late, measured by what is usual: on a busy machine everything takes longer."""
        return min(max(least_s, _LATE * self._usual_s), WAIT_S)

    def _overdue(self) -> bool:
        """Whether someone waits longer for an acknowledgement than is usual."""
        oldest = tuple(self._waiting.values())[:1]
        return bool(oldest) and time.monotonic() - oldest[0] > self._late_s(DOUBT_S)

    def _lost(self, error: KafkaError) -> None:
        """An error that concerns no message; a connection that was merely idle may be among them."""
        self._disconnected |= error.code() == KafkaError._ALL_BROKERS_DOWN

    def _look(self) -> None:
        """RecommendationRequest whether Kafka is there."""
        self._disconnected = False
        try:
            self._producer.list_topics(self._topics.feedback, timeout=self._late_s(LOOK_S))
        except KafkaException as error:
            self._breaker.gone(error)
            for acked in tuple(self._waiting):
                with suppress(RuntimeError):  # its loop closed in between
                    acked.get_loop().call_soon_threadsafe(_settle, acked, error.args[0], None)
        else:
            if self._breaker.open:
                self._breaker.worked()


def event_of(
    interaction: Interaction, event_id: str | None, time: datetime | None
) -> InteractionEvent:
    """The event for one request's feedback."""
    now = events.now()
    return events.interaction_event(
        interaction,
        event_id=event_id or events.new_id(),
        time=time or now,
        source=SOURCE,
        produced=now,
    )


def _settle(
    acked: asyncio.Future[Position], error: KafkaError | None, message: Message | None
) -> None:
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

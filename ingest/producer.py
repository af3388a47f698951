"""Messages into Kafka, in order, each acknowledged or accounted for.

writes  topic  whichever it is given (reviews, feedback, items)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer

from afterclick.errors import AfterclickError, BadInput, Unavailable
from afterclick.topics import PARTITIONER
from ingest.encoder import Message

log = structlog.get_logger()

CHUNK = 10_000
MAX_UNACKED = 200_000
MAX_UNACKED_BYTES = 128 << 20


def producer_config(bootstrap: str, give_up_s: float) -> dict[str, Any]:
    """Idempotent, all replicas, batches made for throughput."""
    return {
        "bootstrap.servers": bootstrap,
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": PARTITIONER,
        "linger.ms": 20,
        "batch.size": 1 << 20,
        "compression.type": "lz4",
        "queue.buffering.max.messages": 1_000_000,
        "queue.buffering.max.kbytes": 1 << 20,
        "delivery.timeout.ms": int(give_up_s * 1000),
        "reconnect.backoff.max.ms": 1000,
        "log_level": 0,
    }


@dataclass
class _Ticket:
    """A chunk on its way: `mark` is reached once none of it is left and none before it."""

    mark: int
    left: int
    size: int
    fail: Callable[[KafkaError], None]

    def __call__(self, error: KafkaError | None, _message: object) -> None:
        self.left -= 1
        if error is not None:
            self.fail(error)


class EventProducer:
    """A Kafka producer that knows how far everything has been delivered.

    Close it (or use `with`): what was sent is flushed, unless an error is on its way out already.
    """

    def __init__(
        self, bootstrap: str, *, connect_s: float = 5.0, give_up_s: float = 120.0, **overrides: Any
    ) -> None:
        self._bootstrap = bootstrap
        self._give_up_s = give_up_s
        self._tickets: deque[_Ticket] = deque()
        self._failure: KafkaError | None = None
        self._failed = 0
        self.delivered = 0
        self._away = False
        config = {**producer_config(bootstrap, give_up_s), **overrides, "error_cb": self._on_error}
        try:
            self._producer = Producer(config)
            self._metadata = self._producer.list_topics(timeout=connect_s)
        except KafkaException as error:
            raise Unavailable(
                f"Kafka at {bootstrap} does not answer ({_name(error.args[0])})"
            ) from None

    def __enter__(self) -> EventProducer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()
        else:
            self._producer.purge()

    @property
    def cluster_id(self) -> str:
        """The id of the Kafka cluster: progress made on one is none on another."""
        return str(self._metadata.cluster_id)

    @property
    def away(self) -> bool:
        """Whether no broker could be reached of late; what is sent waits."""
        return self._away

    def require(self, *topics: str) -> None:
        """Raise Unavailable if one of the topics does not exist."""
        missing = sorted(set(topics) - set(self._metadata.topics))
        if missing:
            raise Unavailable(
                f"no topic {missing[0]} in Kafka at {self._bootstrap}; start it with `afterclick up`"
            )

    def send(self, topic: str, messages: list[Message], mark: int) -> None:
        """Queue messages; once they and all before them are in the log, `delivered` is `mark`.

        Waits while too much is unacknowledged. Raises Unavailable where Kafka stays away too long.
        """
        ticket = _Ticket(
            mark, len(messages), sum(len(m["value"] or b"") for m in messages), self._fail
        )
        self._wait_for_room(len(messages))
        self._tickets.append(ticket)
        rest = messages
        while rest:
            rest = self._queue(topic, rest, ticket)
            self.poll(0.05 if rest else 0)

    def poll(self, seconds: float = 0.0) -> None:
        """Take delivery reports. Raises what made a delivery fail."""
        self._producer.poll(seconds)
        while self._tickets and self._tickets[0].left == 0 and not self._failure:
            self.delivered = self._tickets.popleft().mark
            self._away = False
        if self._failure:
            raise self._error(self._failure)

    def flush(self) -> None:
        """Wait until everything is delivered. Raises Unavailable if that takes longer than Kafka may."""
        deadline = time.monotonic() + self._give_up_s + 5
        while len(self._producer) and time.monotonic() < deadline:
            self.poll(0.1)
        self.poll()
        if len(self._producer):
            raise Unavailable(
                f"Kafka at {self._bootstrap} left {len(self._producer)} events unacknowledged"
            )

    def _queue(self, topic: str, messages: list[Message], ticket: _Ticket) -> list[Message]:
        """Hand messages to the client; those for which it had no room come back."""
        try:
            queued = self._producer.produce_batch(topic, messages, on_delivery=ticket)
        except BufferError:
            return messages
        if queued == len(messages):
            return []
        rest = [m for m in messages if "_error" in m]
        for message in rest:
            error = message.pop("_error")
            if error.code() != KafkaError._QUEUE_FULL:
                raise self._error(error)
        return rest

    def _wait_for_room(self, count: int) -> None:
        while len(self._producer) and (
            len(self._producer) + count > MAX_UNACKED
            or sum(t.size for t in self._tickets) > MAX_UNACKED_BYTES
        ):
            self.poll(0.01)

    def _fail(self, error: KafkaError) -> None:
        self._failed += 1
        self._failure = self._failure or error

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT) and not self._away:
            self._away = True
            log.warning("kafka away", bootstrap=self._bootstrap, error=error.str())
        elif error.fatal():
            self._fail(error)

    def _error(self, error: KafkaError) -> AfterclickError:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return BadInput(
                f"Kafka at {self._bootstrap} takes no event of this size: {error.str()}"
            )
        lost = f"; {self._failed} events were not acknowledged" if self._failed else ""
        return Unavailable(
            f"Kafka at {self._bootstrap} did not take an event within {self._give_up_s:.0f} s "
            f"({_name(error)}){lost}; run the same again to go on from the last delivered one"
        )


def _name(error: KafkaError) -> str:
    return str(error.name()).lstrip("_").lower().replace("_", " ")

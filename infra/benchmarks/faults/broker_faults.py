"""Faults of the log: the broker killed, acknowledgements lost, retention too short.

`AckProxy` is a TCP proxy in front of a broker that drops acknowledgements of written records.
"""

from __future__ import annotations

import socket
import struct
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

from confluent_kafka import TopicPartition as KafkaPartition
from kafka import TopicPartition

from afterclick.errors import LogTruncated
from afterclick.io.kafka_clients import create_admin, python_consumer
from afterclick.io.redis_clients import create_redis
from afterclick.settings import KafkaSettings, Settings
from infra.benchmarks.faults.fault_case import (
    NO_ACKS,
    NO_FENCE,
    SMALL_BATCHES,
    FaultCase,
    FaultLoad,
    SteadyProducer,
    events,
    lost_events,
    produce,
)
from infra.benchmarks.harness import Stack, own_stack
from infra.embedded.java import KAFKA, ensure_jars
from infra.embedded.kafka import KafkaServer, ensure_topics
from infra.embedded.server import free_port
from streaming.positions import applied_offsets, log_ranges
from streaming.proof.reconcile import reconcile

DELETED = 500
"""Unread records that retention deletes from each partition."""
SMALL_REQUESTS = {"batch.num.messages": 100, "linger.ms": 5}
"""Many produce requests from few events."""


@dataclass(frozen=True)
class Delivery:
    """How a topic differs from what was sent to it."""

    missing: int
    duplicates: int
    out_of_order: int
    """Records that were sent before their predecessor in the partition."""


def broker_killed(load: FaultLoad, settings: Settings) -> FaultCase:
    """SIGKILL of Kafka under a producer and the job. The control's producer needs no acks."""
    with own_stack(settings, SMALL_BATCHES) as stack:
        stack.job.start()
        sent = kill_broker(stack, load.events, load.server_kills)
        recovery_s = stack.wait_caught_up()
        report = reconcile(stack.settings)
        delivery = delivery_of(stack.settings, stack.settings.kafka.topics.feedback, sent)
    with own_stack(settings, SMALL_BATCHES) as stack:
        control_sent = kill_broker(stack, load.events // 2, 1, **NO_ACKS)
        topic = stack.settings.kafka.topics.feedback
        control = delivery_of(stack.settings, topic, control_sent)
    return FaultCase(
        name="broker killed",
        kills=load.server_kills,
        events=len(sent),
        lost=delivery.missing + lost_events(report),
        double=delivery.duplicates + report.double,
        control_differs=control.missing > 0,
        recovery_s=round(recovery_s, 1),
        note=f"control: {control.missing} of {len(control_sent)} events never reached the log",
    )


def kill_broker(stack: Stack, count: int, kills: int, **overrides: Any) -> list[bytes]:
    """Produce while the broker is killed and restarted; returns the values sent."""
    with SteadyProducer(stack.settings, 0, **overrides) as producer:
        for n in range(kills + 1):
            producer.wait_sent(stack, (n + 1) * count // (kills + 1))
            if n < kills:
                stack.kafka.kill()
                stack.kafka.start()
    return producer.sent


def acks_lost(load: FaultLoad, settings: Settings) -> FaultCase:
    """The broker writes, its acknowledgement is lost. The control's producer is not idempotent."""
    values = [b"%d" % n for n in range(load.events)]
    with broker_behind_proxy(settings.jars) as (proxy, own):
        topics = own.kafka.topics
        delivery = deliver(proxy, own, topics.reviews, values)
        control = deliver(proxy, own, topics.feedback, values, **{"enable.idempotence": False})
        swallowed = proxy.swallowed
    return FaultCase(
        name="acks lost",
        kills=0,
        events=len(values),
        lost=delivery.missing,
        double=delivery.duplicates + delivery.out_of_order,
        control_differs=control.duplicates > 0,
        recovery_s=0.0,
        note=(
            f"{swallowed} acknowledgements swallowed; control: {control.duplicates} duplicates, "
            f"{control.out_of_order} out of order"
        ),
    )


def deliver(
    proxy: AckProxy, settings: Settings, topic: str, values: list[bytes], **overrides: Any
) -> Delivery:
    """Send values through a proxy that swallows every third acknowledgement."""
    rows = ((f"user-{n % 97}", value) for n, value in enumerate(values))
    proxy.swallow_every = 3
    produce(settings, rows, topic, **SMALL_REQUESTS, **overrides)
    proxy.swallow_every = 0
    return delivery_of(settings, topic, values)


@contextmanager
def broker_behind_proxy(jars: Path) -> Iterator[tuple[AckProxy, Settings]]:
    """A Kafka that clients reach only through the proxy."""
    with tempfile.TemporaryDirectory(
        prefix="afterclick-bench-", ignore_cleanup_errors=True
    ) as folder:
        port = free_port()
        kafka = KafkaServer(Path(folder) / "kafka", ensure_jars(jars, KAFKA), advertised_port=port)
        with AckProxy(port, kafka.port) as proxy:
            try:
                kafka.start()
                bootstrap = KafkaSettings(bootstrap=f"127.0.0.1:{port}")
                settings = Settings(home=Path(folder), jars=jars, kafka=bootstrap)
                ensure_topics(settings)
                yield proxy, settings
            finally:
                kafka.kill()


def retention_passed(load: FaultLoad, settings: Settings) -> FaultCase:
    """Retention deletes records that the job has not read. The control continues silently."""
    with own_stack(settings, SMALL_BATCHES) as stack:
        deleted = _delete_unread(stack, load.events)
        stack.job.start()
        seconds = stack.wait(lambda: not stack.job.running, "the job to stop")
        stopped = stack.job.process.returncode == LogTruncated.exit_code
        named = f"{deleted} events are missing" in stack.job.printed().replace("\n", " ")
    with own_stack(settings, SMALL_BATCHES | NO_FENCE) as stack:
        control_deleted = _delete_unread(stack, load.events)
        stack.job.start()
        stack.wait_caught_up()
        silent = stack.job.running and "missing" not in stack.job.printed()
    return FaultCase(
        name="retention passed",
        kills=0,
        events=load.events,
        lost=0 if stopped and named else deleted,
        double=0,
        control_differs=silent,
        recovery_s=round(seconds, 1),
        note=f"named {deleted} missing events: {named}; control: {control_deleted} lost, "
        f"silent: {silent}",
    )


def _delete_unread(stack: Stack, count: int) -> int:
    """Apply half of the events, produce the rest, delete some of it; the number deleted."""
    stack.job.start()
    produce(stack.settings, events(count // 2, 0))
    stack.wait_caught_up()
    stack.job.stop()
    produce(stack.settings, events(count // 2, 1))
    return truncate_past_position(stack.settings)


def truncate_past_position(settings: Settings) -> int:
    """Delete `DELETED` unapplied records of each partition that has more; returns their number."""
    with create_redis(settings.redis) as client:
        ranges = log_ranges(settings.kafka)
        applied = applied_offsets(client, settings.redis.keys, ranges)
    ends = {name: applied[name] + 1 + DELETED for name in ranges}
    partitions = [
        KafkaPartition(*name, ends[name]) for name, held in ranges.items() if held.end > ends[name]
    ]
    admin = create_admin(settings.kafka)
    for deleted in admin.delete_records(partitions).values():
        deleted.result()
    return DELETED * len(partitions)


def delivery_of(settings: Settings, topic: str, sent: Sequence[bytes]) -> Delivery:
    """Compare a topic with the values sent to it."""
    return compare(read_values(settings, topic), sent)


def read_values(settings: Settings, topic: str) -> dict[int, list[bytes]]:
    """The values of each partition in log order, by another Kafka client than the producer's."""
    consumer = python_consumer(settings.kafka, group_id=None)
    try:
        numbers = sorted(consumer.partitions_for_topic(topic) or ())
        partitions = [TopicPartition(topic, number) for number in numbers]
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        ends = consumer.end_offsets(partitions)
        values: dict[int, list[bytes]] = {number: [] for number in numbers}
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            for partition, records in consumer.poll(timeout_ms=500).items():
                values[partition.partition] += [record.value for record in records]
    finally:
        consumer.close()
    return values


def compare(values: dict[int, list[bytes]], sent: Sequence[bytes]) -> Delivery:
    """Compare a topic's values with those sent, each once."""
    order = {value: n for n, value in enumerate(sent)}
    counts = Counter(value for log in values.values() for value in log if value in order)
    out_of_order = sum(
        order[later] < order[earlier]
        for log in values.values()
        for earlier, later in pairwise(log)
        if earlier in order and later in order
    )
    return Delivery(len(order) - len(counts), counts.total() - len(counts), out_of_order)


_PRODUCE = 0
_REQUEST = struct.Struct(">hhi")
_LENGTH = struct.Struct(">I")
_CORRELATION = struct.Struct(">i")
_LOOPBACK = "127.0.0.1"


class AckProxy:
    """Forwards connections to a broker during a `with`.

    While `swallow_every` is n > 0, each n-th response to a produce request is dropped and its
    connection closed, as if the network failed between write and acknowledgement. `swallowed`
    counts them.
    """

    def __init__(self, port: int, broker_port: int) -> None:
        self.swallow_every = 0
        self.swallowed = 0
        self._seen = 0
        self._broker_port = broker_port
        self._lock = threading.Lock()
        self._listener = socket.create_server((_LOOPBACK, port))

    def __enter__(self) -> AckProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Forward both ways until either side closes or a response is swallowed."""
        with (
            suppress(OSError),
            client,
            socket.create_connection((_LOOPBACK, self._broker_port)) as broker,
        ):
            for end in (client, broker):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            produce: set[int] = set()
            requests = threading.Thread(
                target=self._forward_requests, args=(client, broker, produce)
            )
            requests.start()
            self._forward_responses(broker, client, produce)
            for end in (client, broker):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            requests.join()

    def _forward_requests(
        self, client: socket.socket, broker: socket.socket, produce: set[int]
    ) -> None:
        with suppress(OSError):
            while frame := _frame(client):
                api, _, correlation = _REQUEST.unpack_from(frame, _LENGTH.size)
                if api == _PRODUCE:
                    produce.add(correlation)
                broker.sendall(frame)
        with suppress(OSError):
            broker.shutdown(socket.SHUT_WR)

    def _forward_responses(
        self, broker: socket.socket, client: socket.socket, produce: set[int]
    ) -> None:
        with suppress(OSError):
            while frame := _frame(broker):
                (correlation,) = _CORRELATION.unpack_from(frame, _LENGTH.size)
                if correlation in produce and self._swallow_next():
                    return
                client.sendall(frame)

    def _swallow_next(self) -> bool:
        with self._lock:
            self._seen += 1
            swallow = self.swallow_every > 0 and self._seen % self.swallow_every == 0
            self.swallowed += swallow
        return swallow


def _frame(source: socket.socket) -> bytes:
    """The next frame with its length; empty at the end of the stream."""
    head = _exactly(source, _LENGTH.size)
    if not head:
        return b""
    body = _exactly(source, _LENGTH.unpack(head)[0])
    return head + body if body else b""


def _exactly(source: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = source.recv(min(size, 1 << 20))
        if not part:
            return b""
        parts.append(part)
        size -= len(part)
    return b"".join(parts)

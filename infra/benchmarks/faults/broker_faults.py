"""Faults between producer, broker and job: the broker killed, acknowledgements lost, retention too short."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from afterclick.errors import LogTruncated
from afterclick.settings import KafkaSettings, Settings
from afterclick.state import TopicPartition as LogPartition
from infra.benchmarks.faults.ack_proxy import AckProxy
from infra.benchmarks.faults.fault_case import NO_FENCE, QUICK, Bench, Case, lost
from infra.benchmarks.faults.fault_events import HEEDLESS, SteadyProducer, events, produce
from infra.benchmarks.faults.log_check import Delivery, compare, read_values
from infra.benchmarks.stream_stack import Stack, own_stack
from infra.embedded.jars import KAFKA, ensure_jars
from infra.embedded.kafka import KafkaServer
from infra.embedded.ports import free_port
from infra.topics_admin import ensure_topics
from streaming.positions import applied_offsets, log_ranges
from streaming.proof.reconcile import reconcile

DROPPED = 500
"""Records that retention takes from each partition before the job has read them."""
SMALL_BATCHES = {"batch.num.messages": 100, "linger.ms": 5}
"""Many produce requests from few events."""


def broker_killed(bench: Bench, jars: Path) -> Case:
    """kill -9 of Kafka while a producer writes and the job reads. The control's producer never looks."""
    with own_stack(jars, **QUICK) as stack:
        stack.job.start()
        sent = _kill_broker(stack, bench.events, bench.server_kills)
        recovery = stack.wait_caught_up()
        report = reconcile(stack.settings)
        log = compare(read_values(stack.settings, stack.settings.kafka.topics.feedback), sent)
    with own_stack(jars, **QUICK) as stack:
        control_sent = _kill_broker(stack, bench.events // 2, 1, **HEEDLESS)
        topic = stack.settings.kafka.topics.feedback
        control = compare(read_values(stack.settings, topic), control_sent)
    return Case(
        name="broker killed",
        kills=bench.server_kills,
        events=len(sent),
        lost=log.missing + lost(report),
        double=log.duplicates + report.double,
        control_differs=control.missing > 0,
        recovery_s=round(recovery, 1),
        note=f"control: {control.missing} of {len(control_sent)} events never reached the log",
    )


def _kill_broker(stack: Stack, number: int, kills: int, **overrides: Any) -> list[bytes]:
    """Produce while the broker is killed and started again; the values that were sent."""
    with SteadyProducer(stack.settings, 0, **overrides) as producer:
        for n in range(kills + 1):
            enough = (n + 1) * number // (kills + 1)
            stack.wait(lambda enough=enough: len(producer.sent) >= enough, "events to be produced")  # type: ignore[misc]
            if n < kills:
                stack.kafka.kill()
                stack.kafka.start()
    return producer.sent


def acks_lost(bench: Bench, jars: Path) -> Case:
    """The broker writes, its acknowledgement never arrives. The control's producer is not idempotent."""
    values = [b"%d" % n for n in range(bench.events)]
    with broker_behind_proxy(jars) as (proxy, settings):
        topics = settings.kafka.topics
        safe = deliver(proxy, settings, topics.reviews, values)
        control = deliver(proxy, settings, topics.feedback, values, **{"enable.idempotence": False})
        swallowed = proxy.swallowed
    return Case(
        name="acks lost",
        kills=0,
        events=len(values),
        lost=safe.missing,
        double=safe.duplicates + safe.out_of_order,
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
    """Send values past a proxy that swallows every third acknowledgement; what the topic then holds."""
    rows = ((f"user-{n % 97}", value) for n, value in enumerate(values))
    proxy.swallow_every = 3
    produce(settings, rows, topic, **SMALL_BATCHES, **overrides)
    proxy.swallow_every = 0
    return compare(read_values(settings, topic), values)


@contextmanager
def broker_behind_proxy(jars: Path) -> Iterator[tuple[AckProxy, Settings]]:
    """A Kafka of its own that every client reaches by the proxy alone."""
    with tempfile.TemporaryDirectory(
        prefix="afterclick-bench-", ignore_cleanup_errors=True
    ) as folder:
        outside = free_port()
        kafka = KafkaServer(
            Path(folder) / "kafka", ensure_jars(jars, KAFKA), advertised_port=outside
        )
        with AckProxy(outside, kafka.port) as proxy:
            try:
                kafka.start()
                bootstrap = f"127.0.0.1:{outside}"
                settings = Settings(
                    home=Path(folder), jars=jars, kafka=KafkaSettings(bootstrap=bootstrap)
                )
                ensure_topics(settings)
                yield proxy, settings
            finally:
                kafka.kill()


def retention_passed(bench: Bench, jars: Path) -> Case:
    """Retention takes records that the job has not read. The control goes on without a word."""
    with own_stack(jars, **QUICK) as stack:
        gone = _pass_position(stack, bench.events)
        stack.job.start()
        took = stack.wait(lambda: not stack.job.running, "the job to stop")
        stopped = stack.job.code == LogTruncated.exit_code
        named = f"{gone} events are missing" in stack.job.printed().replace("\n", " ")
    with own_stack(jars, **QUICK, **NO_FENCE) as stack:
        control_gone = _pass_position(stack, bench.events)
        stack.job.start()
        stack.wait_caught_up()
        silent = stack.job.running and "missing" not in stack.job.printed()
    return Case(
        name="retention passed",
        kills=0,
        events=bench.events,
        lost=0 if stopped and named else gone,
        double=0,
        control_differs=silent,
        recovery_s=round(took, 1),
        note=f"named {gone} missing events: {named}; control: {control_gone} lost, silent: {silent}",
    )


def _pass_position(stack: Stack, number: int) -> int:
    """Stop the job, and delete what it has not read yet; how many records it can never read."""
    stack.job.start()
    produce(stack.settings, events(number // 2, 0))
    stack.wait_caught_up()
    stack.job.stop()
    produce(stack.settings, events(number // 2, 1))
    return truncate_past_position(stack.settings)


def truncate_past_position(settings: Settings) -> int:
    """Delete records of each partition that holds enough, past its position; how many the state lacks."""
    with redis.Redis.from_url(settings.redis.url) as client:
        spans = log_ranges(settings.kafka)
        at = applied_offsets(client, settings.redis.keys, spans)
    until: dict[LogPartition, int] = {
        place: at[place] + 1 + DROPPED
        for place, span in spans.items()
        if span.end > at[place] + 1 + DROPPED
    }
    wanted = [
        TopicPartition(topic, partition, offset) for (topic, partition), offset in until.items()
    ]
    admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap})
    for deleted in admin.delete_records(wanted).values():
        deleted.result()
    return DROPPED * len(until)

"""A broker with TLS and passwords that is killed and started again."""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaError

from afterclick.io.kafka_clients import create_producer
from afterclick.settings import KafkaSettings, Settings
from infra.benchmarks.faults.broker_faults import delivery_of, kill_broker
from infra.benchmarks.faults.fault_case import (
    SMALL_BATCHES,
    FaultCase,
    FaultLoad,
    events,
    lost_events,
)
from infra.benchmarks.harness import own_stack
from infra.embedded.kafka import SecureKafkaServer
from streaming.proof.reconcile import reconcile

_STRANGERS_EVENTS = 100
_STRANGER: dict[str, Any] = {"message.timeout.ms": 5_000, "log_level": 0}


def secure_broker_killed(load: FaultLoad, settings: Settings) -> FaultCase:
    """SIGKILL of a broker with SASL and TLS under a producer and the job, which log in again.

    The control's producer has no password.
    """
    with own_stack(settings, SMALL_BATCHES, SecureKafkaServer) as stack:
        stack.job.start()
        sent = kill_broker(stack, load.events, load.server_kills)
        recovery_s = stack.wait_caught_up()
        report = reconcile(stack.settings)
        delivery = delivery_of(stack.settings, stack.settings.kafka.topics.feedback, sent)
        rejected = _rejected_without_password(stack.settings)
    return FaultCase(
        name="secure broker killed",
        kills=load.server_kills,
        events=len(sent),
        lost=delivery.missing + lost_events(report),
        double=delivery.duplicates + report.double,
        control_differs=rejected == _STRANGERS_EVENTS,
        recovery_s=round(recovery_s, 1),
        note=f"control: {rejected} of {_STRANGERS_EVENTS} events without a password never "
        "reached the log",
    )


def _rejected_without_password(settings: Settings) -> int:
    """Of some events that a producer without TLS and password sends, those not acknowledged."""
    errors: list[KafkaError] = []
    producer = create_producer(KafkaSettings(bootstrap=settings.kafka.bootstrap), _STRANGER)

    def on_delivery(error: KafkaError | None, _: object) -> None:
        if error is not None:
            errors.append(error)

    for key, value in events(_STRANGERS_EVENTS, 9):
        producer.produce(settings.kafka.topics.feedback, value, key, on_delivery=on_delivery)
    producer.flush(30)
    return len(errors)

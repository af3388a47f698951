"""A killed broker or lost acknowledgements leave each record in the log once, in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afterclick.settings import KafkaSettings, Settings
from infra.benchmarks.faults.broker_faults import (
    Delivery,
    broker_behind_proxy,
    compare,
    deliver,
    read_values,
)
from infra.benchmarks.faults.fault_case import NO_ACKS, SteadyProducer
from infra.embedded.kafka import KafkaServer, ensure_topics
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(300)
VALUES = [b"%d" % n for n in range(5000)]


def test_lost_acknowledgements_double_nothing_unless_the_producer_is_not_idempotent(
    jars: Path,
) -> None:
    with broker_behind_proxy(jars) as (proxy, settings):
        topics = settings.kafka.topics
        assert deliver(proxy, settings, topics.reviews, VALUES) == Delivery(0, 0, 0)
        assert proxy.swallowed > 0
        control = deliver(proxy, settings, topics.feedback, VALUES, **{"enable.idempotence": False})
        assert control.missing == 0
        assert control.duplicates > 1000
        assert control.out_of_order > 0


@pytest.mark.parametrize("overrides", [{}, NO_ACKS], ids=["idempotent", "without acknowledgements"])
def test_a_killed_broker_loses_nothing_that_was_acknowledged(
    own_broker: KafkaServer, tmp_path: Path, overrides: dict[str, Any]
) -> None:
    settings = Settings(home=tmp_path, kafka=KafkaSettings(bootstrap=own_broker.address))
    ensure_topics(settings)
    with SteadyProducer(settings, 0, **overrides) as producer:
        wait_until(lambda: len(producer.sent) > 1000)
        own_broker.kill()
        own_broker.start()
        enough = len(producer.sent) + 1000
        wait_until(lambda: len(producer.sent) > enough)
    found = compare(read_values(settings, settings.kafka.topics.feedback), producer.sent)
    if overrides:
        assert found.missing > 0
    else:
        assert found == Delivery(0, 0, 0)

"""What a topic holds against what was sent, read by another Kafka client than the one that wrote it.

reads   topic  whichever is asked for
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from kafka import KafkaConsumer, TopicPartition

from afterclick.settings import Settings


@dataclass(frozen=True)
class Delivery:
    """How a topic differs from what was sent to it."""

    missing: int
    duplicates: int
    out_of_order: int
    """Records that were sent before their predecessor in the partition."""


def read_values(settings: Settings, topic: str) -> dict[int, list[bytes]]:
    """The values of each partition, in the order of the log."""
    consumer = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap.split(","), group_id=None)
    try:
        places = [
            TopicPartition(topic, n) for n in sorted(consumer.partitions_for_topic(topic) or ())
        ]
        consumer.assign(places)
        consumer.seek_to_beginning()
        ends = consumer.end_offsets(places)
        values: dict[int, list[bytes]] = {place.partition: [] for place in places}
        while any(consumer.position(place) < end for place, end in ends.items()):
            for place, records in consumer.poll(timeout_ms=500).items():
                values[place.partition] += [record.value for record in records]
    finally:
        consumer.close()
    return values


def compare(values: dict[int, list[bytes]], sent: Sequence[bytes]) -> Delivery:
    """Compare a topic with what was sent to it, each value once."""
    order = {value: n for n, value in enumerate(sent)}
    found = Counter(value for some in values.values() for value in some if value in order)
    backwards = sum(
        order[later] < order[earlier]
        for some in values.values()
        for earlier, later in pairwise(some)
        if earlier in order and later in order
    )
    return Delivery(len(order) - len(found), found.total() - len(found), backwards)

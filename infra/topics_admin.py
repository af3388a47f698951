"""Create and delete topics with kafka-python's admin client.

writes  topic  every topic of afterclick.topics, with its partitions and retention
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import KafkaError

from afterclick.errors import Unavailable
from afterclick.settings import KafkaSettings, Settings


def ensure_topics(settings: Settings) -> list[str]:
    """Create missing topics; their names, sorted. Existing topics are unchanged.

    Returns when every new partition has a leader, which is later than in the metadata.
    """
    kafka = settings.kafka
    with _admin(kafka.bootstrap) as admin:
        existing = set(admin.list_topics())
        missing = {
            topic.name: {
                "num_partitions": topic.partitions,
                "replication_factor": kafka.replication,
                "configs": topic.config,
            }
            for topic in kafka.topics.all()
            if topic.name not in existing
        }
        if missing:
            admin.create_topics(missing, wait_for_metadata=True)
            partitions = [
                TopicPartition(topic.name, n)
                for topic in kafka.topics.all()
                if topic.name in missing
                for n in range(topic.partitions)
            ]
            admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
    return sorted(missing)


def delete_topics(kafka: KafkaSettings) -> None:
    """Delete every topic with the prefix of these settings."""
    names = {topic.name for topic in kafka.topics.all()}
    with _admin(kafka.bootstrap) as admin:
        present = sorted(names & set(admin.list_topics()))
        if present:
            admin.delete_topics(present)


def broker_answers(bootstrap: str) -> bool:
    """Whether a broker answers requests."""
    try:
        with _admin(bootstrap, timeout_ms=1500) as admin:
            admin.list_topics()
    except Unavailable:
        return False
    return True


@contextmanager
def _admin(bootstrap: str, timeout_ms: int = 10_000) -> Iterator[KafkaAdminClient]:
    """An admin client during a `with`. Kafka errors become Unavailable."""
    servers = bootstrap.split(",")
    try:
        with KafkaAdminClient(bootstrap_servers=servers, bootstrap_timeout_ms=timeout_ms) as admin:
            yield admin
    except (KafkaError, OSError) as error:
        raise Unavailable(f"Kafka at {bootstrap}: {error or type(error).__name__}") from error

"""The Kafka topics: names, partitions, retention. infra/embedded/kafka.py creates them."""

from __future__ import annotations

from dataclasses import dataclass

DAY_MS = 86_400_000
IMPRESSIONS_MS = 30 * DAY_MS
"""Retention of impressions."""
PARTITIONER = "murmur2_random"
"""Partitioner of every producer, as in Java's clients: a user's events share a partition."""
MAX_RECORD_BYTES = 1_048_588
"""Largest record of every topic (Kafka's default). Producers of the stream send half at most."""


@dataclass(frozen=True)
class Topic:
    """Configuration of a topic. `retention_ms` −1: unlimited.

    With `arrival` the record timestamp is the time of the append by the broker.
    """

    name: str
    partitions: int
    cleanup: str = "delete"
    retention_ms: int = -1
    arrival: bool = False

    @property
    def config(self) -> dict[str, str]:
        """The topic configuration for Kafka's admin API."""
        config = {
            "cleanup.policy": self.cleanup,
            "max.message.bytes": str(MAX_RECORD_BYTES),
        }
        if self.cleanup == "delete":
            config["retention.ms"] = str(self.retention_ms)
        if self.arrival:
            config["message.timestamp.type"] = "LogAppendTime"
        return config


@dataclass(frozen=True)
class Topics:
    """Every topic of one installation. `prefix` lets several share a broker."""

    prefix: str = ""
    partitions: int = 4
    interactions_ms: int = 90 * DAY_MS
    """Retention of reviews and feedback, since they were appended; -1: unlimited."""
    dead_letters_ms: int = 30 * DAY_MS

    @property
    def reviews(self) -> str:
        return f"{self.prefix}reviews"

    @property
    def feedback(self) -> str:
        return f"{self.prefix}feedback"

    @property
    def impressions(self) -> str:
        return f"{self.prefix}impressions"

    @property
    def items(self) -> str:
        return f"{self.prefix}items"

    @property
    def models(self) -> str:
        return f"{self.prefix}models"

    @property
    def state_changes(self) -> str:
        return f"{self.prefix}state-changes"

    @property
    def forgotten(self) -> str:
        return f"{self.prefix}forgotten"

    @property
    def interactions(self) -> tuple[str, str]:
        """The topics whose events change the state."""
        return (self.reviews, self.feedback)

    @property
    def logged(self) -> tuple[str, ...]:
        """The topics whose events are archived: interactions and impressions."""
        return (*self.interactions, self.impressions)

    def all(self) -> tuple[Topic, ...]:
        """Every topic to create, dead-letter topics included."""
        logs = [
            Topic(name, self.partitions, retention_ms=self.interactions_ms, arrival=True)
            for name in self.interactions
        ]
        dead = [Topic(dlq(name), 1, retention_ms=self.dead_letters_ms) for name in self.logged]
        return (
            *logs,
            *dead,
            Topic(self.impressions, self.partitions, retention_ms=IMPRESSIONS_MS),
            Topic(self.items, 1, cleanup="compact"),
            Topic(self.models, 1, cleanup="compact"),
            Topic(self.forgotten, 1, cleanup="compact"),
            Topic(self.state_changes, self.partitions, retention_ms=DAY_MS),
        )


def dlq(topic: str) -> str:
    """The dead-letter topic of a topic: raw bytes, same key, the reason in headers."""
    return f"{topic}.dlq"

"""The Kafka topics: names, partitions, retention. Auto-create is off; `ensure` code lives in infra."""

from __future__ import annotations

from dataclasses import dataclass

DAY_MS = 86_400_000
PARTITIONER = "murmur2_random"
"""How producers choose a partition by key: as Java's clients do, so that a user's events share one."""


@dataclass(frozen=True)
class Topic:
    """One topic as it is created. `retention_ms` −1 keeps for ever.

    With `arrival` a record's timestamp is when the broker appended it, whatever its producer says.
    """

    name: str
    partitions: int
    cleanup: str = "delete"
    retention_ms: int = -1
    arrival: bool = False

    @property
    def config(self) -> dict[str, str]:
        """The topic configuration in Kafka's own words."""
        config = {"cleanup.policy": self.cleanup}
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
        """The topics whose events change the state, in the order of their topic number."""
        return (self.reviews, self.feedback)

    def all(self) -> tuple[Topic, ...]:
        """Every topic to create, dead-letter topics included."""
        logs = [Topic(name, self.partitions, arrival=True) for name in self.interactions]
        dead = [Topic(dlq(name), 1) for name in self.interactions]
        return (
            *logs,
            *dead,
            Topic(self.impressions, self.partitions, retention_ms=30 * DAY_MS),
            Topic(self.items, 1, cleanup="compact"),
            Topic(self.models, 1, cleanup="compact"),
            Topic(self.forgotten, 1, cleanup="compact"),
            Topic(self.state_changes, self.partitions, retention_ms=DAY_MS),
        )


def dlq(topic: str) -> str:
    """The dead-letter topic of a topic: raw bytes, same key, headers that say why."""
    return f"{topic}.dlq"

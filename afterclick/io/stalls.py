"""Find partitions of the interaction topics that stand still although records follow.

reads   topic  reviews, feedback, where the applied or archived offset of a partition does not move
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from afterclick.arrays import Json
from afterclick.io.kafka_log import KafkaLog, OffsetRange, OffsetRanges
from afterclick.state import TopicPartition


@dataclass(frozen=True, slots=True)
class Stall:
    """A partition whose next record has not been applied for some time."""

    partition: TopicPartition
    offset: int
    """Of the first record that is not applied."""
    seconds: float

    def as_json(self) -> Json:
        return {
            "partition": str(self.partition),
            "offset": self.offset,
            "seconds": round(self.seconds, 1),
        }

    def __str__(self) -> str:
        return f"{self.partition} at offset {self.offset} for {self.seconds:.0f} s"


@dataclass
class StallDetector:
    """Compares the applied offsets of calls about a second apart."""

    log: KafkaLog
    after_s: float
    """Seconds without progress after which a partition is stalled."""
    _since: dict[TopicPartition, tuple[int, float]] = field(default_factory=dict, init=False)
    """Applied offset of a partition with lag, and since when (time.monotonic)."""

    def check(self, ranges: OffsetRanges, applied: Mapping[TopicPartition, int]) -> list[Stall]:
        """The partitions that are stalled now.

        A transaction's marker after the last record is no lag. Raises Unavailable.
        """
        now, stalls = time.monotonic(), []
        for partition, held in ranges.items():
            at = applied.get(partition, -1)
            pending = OffsetRange(max(at + 1, held.begin), held.end)
            known, since = self._since.get(partition, (None, now))
            if not len(pending) or known != at:
                self._since[partition] = (at, now)
            elif now - since >= self.after_s:
                first = next(self.log.read({partition: pending}), None)
                if first is None:
                    self._since[partition] = (at, now)
                else:
                    stalls.append(Stall(partition, first.offset() or 0, now - since))
        return stalls

    def reset(self) -> None:
        """Measure from now on."""
        self._since.clear()

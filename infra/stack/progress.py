"""How far a running stack has got, measured from outside.

reads   topic  reviews, feedback (end offsets)
        redis  {p:<topic>:<partition>}:position
        http   GET /health/ready
        file   <home>/checkpoints/archive (the offsets of the last finished batch)
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import redis
import structlog

from afterclick.errors import Unavailable
from afterclick.io.home import StackProgress
from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import Settings
from afterclick.state import TopicPartition

log = structlog.get_logger()
_TIMEOUT_S = 5.0


class ProgressProbe:
    """Keeps one connection per server; what does not answer counts as zero."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._log = KafkaLog(settings.kafka, _TIMEOUT_S)
        self._redis = redis.Redis.from_url(
            settings.redis.url, socket_timeout=2, socket_connect_timeout=2
        )
        self._previous: tuple[float, int] | None = None
        self.latest = StackProgress()
        """The newest reading."""

    def read(self) -> None:
        """Take a reading."""
        ends = self._ends()
        events, applied = sum(ends.values()), self._applied(ends)
        self.latest = StackProgress(
            log_events=events,
            applied_events=applied,
            archived_events=archived(self._settings.home / "checkpoints" / "archive"),
            lag=max(0, events - applied),
            events_per_s=round(self._rate(applied), 1),
            model_version=self._model(),
        )

    def _ends(self) -> dict[TopicPartition, int]:
        try:
            ranges = self._log.ranges(*self._settings.kafka.topics.interactions)
        except Unavailable as error:
            log.debug("no end offsets", error=str(error))
            return {}
        return {partition: offsets.end for partition, offsets in ranges.items()}

    def _applied(self, partitions: Iterable[TopicPartition]) -> int:
        keys = [self._settings.redis.keys.applied_offset(*partition) for partition in partitions]
        if not keys:
            return 0
        try:
            offsets = self._redis.mget(keys)
        except redis.RedisError as error:
            log.debug("no applied offsets", error=str(error))
            return 0
        return sum(int(offset) + 1 for offset in offsets if offset is not None)

    def _model(self) -> str | None:
        url = f"{self._settings.serving.url}/health/ready"
        with (
            suppress(OSError, ValueError, KeyError),
            urllib.request.urlopen(url, timeout=1) as response,
        ):
            version = json.load(response)["parts"]["model"]
            return str(version) if version else None
        return None

    def _rate(self, applied: int) -> float:
        now = time.monotonic()
        previous, self._previous = self._previous, (now, applied)
        if previous is None or now <= previous[0]:
            return 0.0
        return max(0.0, (applied - previous[1]) / (now - previous[0]))


def archived(checkpoint: Path) -> int:
    """Records in finished batches of the archive query, from Spark's offset log."""
    numbers = [int(file.name) for file in (checkpoint / "commits").glob("[0-9]*")]
    if not numbers:
        return 0
    try:
        lines = (checkpoint / "offsets" / str(max(numbers))).read_text().splitlines()
        offsets: dict[str, dict[str, int]] = json.loads(lines[-1])
    except (OSError, ValueError, IndexError):
        return 0
    return sum(end for partitions in offsets.values() for end in partitions.values())

"""Ask the running stack, from the outside, how far it has got.

reads   topic  reviews, feedback (end offsets)
        redis  {p:<topic>:<partition>}:position
        http   GET /health/ready
        file   <home>/checkpoints/archive (what the last finished batch had read)
"""

from __future__ import annotations

import json
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import KafkaError

from infra.stack.layout import Layout
from infra.stack.stages import Figures


class Gauge:
    """Keeps one connection to each server and turns their answers into figures."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._admin: KafkaAdminClient | None = None
        self._redis = redis.Redis.from_url(
            layout.settings.redis.url, socket_timeout=2, socket_connect_timeout=2
        )
        self._last: tuple[float, int] | None = None

    def read(self) -> Figures:
        """The figures now; what does not answer keeps zero and is named in `errors`."""
        figures = Figures()
        ends = self._ends(figures)
        figures.log_events = sum(ends.values())
        figures.applied_events = self._applied(list(ends), figures)
        figures.archived_events = archived(self.layout.home / "checkpoints" / "archive")
        figures.model_version = self._model()
        figures.events_per_s = self._rate(figures.applied_events)
        return figures

    def _ends(self, figures: Figures) -> dict[tuple[str, int], int]:
        kafka = self.layout.settings.kafka
        partitions = [(t, p) for t in kafka.topics.interactions for p in range(kafka.partitions)]
        wanted = {TopicPartition(t, p): OffsetSpec.LATEST for t, p in partitions}
        try:
            if self._admin is None:
                servers = kafka.bootstrap.split(",")
                self._admin = KafkaAdminClient(
                    bootstrap_servers=servers, bootstrap_timeout_ms=2000, request_timeout_ms=5000
                )
            offsets = self._admin.list_partition_offsets(wanted)
        except (KafkaError, OSError, TimeoutError) as error:
            figures.errors.append(f"Kafka: {error}")
            return {}
        return {(tp.topic, tp.partition): answer.offset for tp, answer in offsets.items()}

    def _applied(self, partitions: list[tuple[str, int]], figures: Figures) -> int:
        keys = self.layout.settings.redis.keys
        if not partitions:
            return 0
        try:
            positions: list[Any] = self._redis.mget(
                [keys.applied_offset(t, p) for t, p in partitions]
            )
        except redis.RedisError as error:
            figures.errors.append(f"Redis: {error}")
            return 0
        return sum(int(position) + 1 for position in positions if position is not None)

    def _model(self) -> str | None:
        url = f"{self.layout.api_url}/health/ready"
        with (
            suppress(OSError, ValueError, KeyError),
            urllib.request.urlopen(url, timeout=1) as answer,
        ):
            version = json.load(answer)["parts"]["model"]
            return str(version) if version else None
        return None

    def _rate(self, applied: int) -> float:
        now = time.monotonic()
        last, self._last = self._last, (now, applied)
        return max(0.0, (applied - last[1]) / (now - last[0])) if last and now > last[0] else 0.0


def archived(checkpoint: Path) -> int:
    """How many records the archive query has read into finished batches, by Spark's own offset log."""
    numbers = [int(file.name) for file in (checkpoint / "commits").glob("[0-9]*")]
    if not numbers:
        return 0
    try:
        lines = (checkpoint / "offsets" / str(max(numbers))).read_text().splitlines()
        offsets: dict[str, dict[str, int]] = json.loads(lines[-1])
    except (OSError, ValueError, IndexError):
        return 0
    return sum(
        next_offset for partitions in offsets.values() for next_offset in partitions.values()
    )

"""What the archive query does with a batch: archive its events, and count lists and reactions.

reads   redis  what streaming.archive_table and streaming.exposures read
writes  delta  <archive>, <archive>-impressions
        redis, topic  what streaming.exposures writes

One task does both, as one query costs half of two. Each has its own offsets: of a batch that is
repeated, each leaves out what it has done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from afterclick.settings import Settings
from afterclick.state import TopicPartition
from streaming.archive_table import IMPRESSIONS, ArchiveAppender
from streaming.connection import connect
from streaming.exposures import ExposureApplier, ExposureConfig
from streaming.fault_points import FaultPoints
from streaming.forgotten_users import ForgottenUsers
from streaming.worker import by_partition, log_holds_records, sender


@dataclass
class ArchiveTask:
    """Archives the rows of a batch, and counts the lists and reactions among them."""

    settings: Settings
    exposures: ExposureConfig

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Take batches (`SOURCE_COLUMNS`), each partition in offset order; returns none."""
        settings = self.settings
        archives = archive_appenders(settings)
        connection, send = connect(self.exposures.url), sender(settings.kafka).send_to_dlq
        log_holds = partial(log_holds_records, settings.kafka)
        counter = ExposureApplier(self.exposures, connection, send, log_holds)
        for topic, number, records in by_partition(batches):
            name = TopicPartition(topic, number)
            archives[topic].add(name, records)
            counter.apply(name, records)
        for archive in archives.values():
            archive.commit()
        return iter(())


def archive_appenders(settings: Settings) -> dict[str, ArchiveAppender]:
    """Topic → what appends its events to their archive."""
    server, topics = settings.redis, settings.kafka.topics
    forgotten = ForgottenUsers(server.client_url, server.cluster, server.keys)
    options = (forgotten, FaultPoints.of(settings.stream), settings.stream.ahead_s * 1000)
    events = ArchiveAppender(settings.archive, *options)
    lists = ArchiveAppender(settings.impression_archive, *options, IMPRESSIONS)
    return {**dict.fromkeys(topics.interactions, events), topics.impressions: lists}

"""The stream job without Spark: its apply code, fed by a plain consumer."""

from __future__ import annotations

import threading
from functools import partial
from types import TracebackType

import redis
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition

from afterclick.errors import Unavailable
from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import Settings
from streaming.apply import Applier, ApplyConfig
from streaming.connection import NodeConnection, load_functions
from streaming.records import Record
from streaming.worker import log_holds_records


class MiniStream:
    """Applies what is on the interaction topics and writes `state-changes`, in a thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MiniStream:
        self._load_functions()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(10)

    def _load_functions(self) -> None:
        client = redis.Redis.from_url(self.settings.redis.url)
        load_functions(client)
        client.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except (redis.RedisError, KafkaException, Unavailable):
                self._stop.wait(0.3)

    def _follow(self) -> None:
        self._load_functions()
        kafka = self.settings.kafka
        client = redis.Redis.from_url(self.settings.redis.url)
        with KafkaLog(kafka) as log:
            partitions = log.partitions(*kafka.topics.interactions)
            n_changes = len(log.partitions(kafka.topics.state_changes))
        positions = [
            TopicPartition(
                t, p, int(client.get(self.settings.redis.keys.applied_offset(t, p)) or -1) + 1
            )
            for t, p in partitions
        ]
        client.close()
        consumer = Consumer(
            {
                "bootstrap.servers": kafka.bootstrap,
                "group.id": "mini-stream",
                "enable.auto.commit": False,
            }
        )
        producer = Producer({"bootstrap.servers": kafka.bootstrap, "enable.idempotence": True})
        consumer.assign(positions)
        plan = ApplyConfig.of(self.settings, n_changes)
        log_holds = partial(log_holds_records, kafka)
        applier = Applier(plan, NodeConnection(self.settings.redis.url), log_holds=log_holds)
        try:
            while not self._stop.is_set():
                first = consumer.poll(0.05)
                if first is None or first.error():
                    continue
                self._apply(applier, producer, [first, *consumer.consume(500, 0)])
        finally:
            consumer.close()

    def _apply(self, applier: Applier, producer: Producer, messages: list[Message]) -> None:
        partitions: dict[tuple[str, int], list[Record]] = {}
        for message in messages:
            if message.error() is None:
                place = (message.topic() or "", message.partition() or 0)
                offset, log_ms = message.offset(), float(message.timestamp()[1])
                assert offset is not None
                record = Record(offset, message.key(), message.value(), log_ms)
                partitions.setdefault(place, []).append(record)
        for (topic, partition), records in partitions.items():
            for output in applier.apply(topic, partition, records):
                at = -1 if output.partition is None else output.partition
                producer.produce(
                    output.topic, output.value, output.key, at, headers=list(output.headers)
                )
        producer.flush()

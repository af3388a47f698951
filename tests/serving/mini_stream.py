"""The stream job without Spark: its code for events and for lists, fed by a plain consumer."""

from __future__ import annotations

import threading
from functools import partial
from types import TracebackType

import redis
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition

from afterclick.errors import Unavailable
from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import Settings
from afterclick.state import TopicPartition as Partition
from streaming.apply import Applier, ApplyConfig
from streaming.connection import NodeConnection, load_functions
from streaming.exposures import ExposureApplier, ExposureConfig, exposed_offsets
from streaming.positions import applied_offsets
from streaming.records import Record
from streaming.worker import log_holds_records


class MiniStream:
    """Applies what is on the interaction topics and writes `state-changes`, in a thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._applied: dict[Partition, int] = {}

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
            logged = log.partitions(*kafka.topics.logged)
            n_changes = len(log.partitions(kafka.topics.state_changes))
        events = [name for name in logged if name.topic in kafka.topics.interactions]
        keys = self.settings.redis.keys
        self._applied = applied_offsets(client, keys, events)
        exposed = exposed_offsets(client, keys, logged)
        client.close()
        starts = {
            name: min(exposed[name], self._applied.get(name, exposed[name])) for name in logged
        }
        positions = [TopicPartition(*name, offset + 1) for name, offset in starts.items()]
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
        connection = NodeConnection(self.settings.redis.url)
        applier = Applier(plan, connection, log_holds=log_holds)
        config = ExposureConfig.of(self.settings)
        counter = ExposureApplier(config, connection, log_holds=log_holds)
        try:
            while not self._stop.is_set():
                first = consumer.poll(0.05)
                if first is None or first.error():
                    continue
                self._apply(applier, counter, producer, [first, *consumer.consume(500, 0)])
        finally:
            consumer.close()

    def _apply(
        self,
        applier: Applier,
        counter: ExposureApplier,
        producer: Producer,
        messages: list[Message],
    ) -> None:
        partitions: dict[Partition, list[Record]] = {}
        for message in messages:
            if message.error() is None:
                place = Partition(message.topic() or "", message.partition() or 0)
                offset, log_ms = message.offset(), float(message.timestamp()[1])
                assert offset is not None
                record = Record(offset, message.key(), message.value(), log_ms)
                partitions.setdefault(place, []).append(record)
        for place, records in partitions.items():
            counter.apply(place, records)
            applied = self._applied.get(place, records[-1].offset)
            new = [record for record in records if record.offset > applied]
            for output in applier.apply(*place, new):
                at = -1 if output.partition is None else output.partition
                producer.produce(
                    output.topic, output.value, output.key, at, headers=list(output.headers)
                )
        producer.flush()

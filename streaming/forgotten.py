"""Who is forgotten, and up to when: kept on a compacted topic, and in Redis where events are refused.

reads   topic  forgotten
        redis  forgotten, {u:<user>}:forgotten
writes  topic  forgotten
        redis  forgotten, {u:<user>}:forgotten
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import redis
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from afterclick.errors import Unavailable
from afterclick.redis_keys import Keys
from afterclick.settings import KafkaSettings
from afterclick.state import decode_forgotten, encode_forgotten
from streaming.connection import connect

_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Forgotten:
    """Asks Redis who is forgotten, from a Spark worker."""

    url: str
    cluster: bool
    keys: Keys

    def among(self, user_ids: Iterable[str]) -> dict[str, int]:
        """Of these users the forgotten ones, and the event time ms up to which they are."""
        users = list(dict.fromkeys(user_ids))
        if not users:
            return {}
        connection = connect(self.url, self.cluster)
        (known,) = connection.call([("SMISMEMBER", self.keys.forgotten_users, *users)])
        users = [user for user, one in zip(users, known, strict=True) if one]
        answers = (
            connection.call([("GET", self.keys.forgotten(user)) for user in users]) if users else []
        )
        return {
            user: int(until)
            for user, until in zip(users, answers, strict=True)
            if until is not None
        }


def publish(kafka: KafkaSettings, user_id: str, until_ms: int) -> None:
    """Put on the topic that a user is forgotten. Raises Unavailable where it is not acknowledged."""
    failed: list[KafkaError] = []
    producer = Producer(
        {"bootstrap.servers": kafka.bootstrap, "enable.idempotence": True, "log_level": 0}
    )
    producer.produce(
        kafka.topics.forgotten,
        key=user_id.encode(),
        value=encode_forgotten(until_ms),
        on_delivery=lambda error, _: failed.append(error) if error else None,
    )
    if producer.flush(_TIMEOUT_S) or failed:
        raise Unavailable(
            f"Kafka at {kafka.bootstrap} did not take the forgetting; nothing was forgotten"
        )


def read(kafka: KafkaSettings) -> dict[str, int]:
    """Every forgotten user and until when (event time ms). Raises Unavailable."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": "forgotten",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    found: dict[str, int] = {}
    try:
        known = consumer.list_topics(kafka.topics.forgotten, timeout=_TIMEOUT_S)
        places = [
            TopicPartition(kafka.topics.forgotten, n, 0)
            for n in known.topics[kafka.topics.forgotten].partitions
        ]
        consumer.assign(places)
        left = len(places)
        while left:
            message = consumer.poll(_TIMEOUT_S)
            if message is None:
                raise Unavailable(f"Kafka at {kafka.bootstrap} does not say who is forgotten")
            error = message.error()
            if error is None:
                user_id, until_ms = decode_forgotten(message.key(), message.value())
                found[user_id] = max(until_ms, found.get(user_id, until_ms))
            elif error.code() == KafkaError._PARTITION_EOF:
                left -= 1
            else:
                raise KafkaException(error)
    except KafkaException as error:
        raise Unavailable(f"Kafka at {kafka.bootstrap}: {error.args[0].str()}") from None
    finally:
        consumer.close()
    return found


def restore(client: redis.Redis, keys: Keys, kafka: KafkaSettings) -> None:
    """Bring what the topic says into Redis, which may have lost it. Raises Unavailable."""
    try:
        for user_id, until_ms in read(kafka).items():
            client.sadd(keys.forgotten_users, user_id)
            client.fcall("afterclick_raise_to", 1, keys.forgotten(user_id), str(until_ms))
    except redis.RedisError as error:
        raise Unavailable(f"Redis: {error}") from None

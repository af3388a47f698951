"""Forgotten users and until when in Redis, where their events are rejected.

reads          topic  forgotten
reads, writes  redis  forgotten, {u:<user>}:forgotten
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import redis

from afterclick.io.forgotten import read_forgotten
from afterclick.redis_keys import Keys
from afterclick.settings import KafkaSettings
from streaming.connection import connect
from streaming.positions import redis_errors


@dataclass(frozen=True)
class ForgottenUsers:
    """Looks up forgotten users in Redis. Picklable, for Spark workers."""

    url: str
    cluster: bool
    keys: Keys

    def among(self, user_ids: Iterable[str]) -> dict[str, int]:
        """The forgotten ones of these users → event time ms up to which they are forgotten."""
        users = list(dict.fromkeys(user_ids))
        if not users:
            return {}
        connection = connect(self.url, self.cluster)
        (flags,) = connection.call([("SMISMEMBER", self.keys.forgotten_users, *users)])
        users = [user for user, flag in zip(users, flags, strict=True) if flag]
        commands = [("GET", self.keys.forgotten(user)) for user in users]
        replies = connection.call(commands) if commands else []
        until = zip(users, replies, strict=True)
        return {user: int(until_ms) for user, until_ms in until if until_ms is not None}


def restore_forgotten(client: redis.Redis, keys: Keys, kafka: KafkaSettings) -> None:
    """Copy the topic into Redis, which may have lost its copy. Raises Unavailable."""
    requests = read_forgotten(kafka)
    with redis_errors():
        for user_id, until_ms in requests.items():
            client.sadd(keys.forgotten_users, user_id)
            client.fcall("afterclick_raise_to", 1, keys.forgotten(user_id), str(until_ms))

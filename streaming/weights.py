"""The weights that a state was computed with: after a change only `rebuild` makes it exact again.

reads, writes  redis  weights
reads          redis  {p:<topic>:<partition>}:position
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import redis

from afterclick.errors import StateConflict
from afterclick.redis_keys import Keys
from afterclick.signals import Signals
from afterclick.state import TopicPartition
from streaming.positions import applied_offsets, redis_errors

_REBUILD = "stop the stream and run `afterclick rebuild`"


def record_weights(client: redis.Redis, keys: Keys, signals: Signals) -> None:
    """Store the weights that the state is computed with. Raises Unavailable."""
    with redis_errors():
        client.set(keys.weights, signals.encode_weights())


def require_weights(
    client: redis.Redis, keys: Keys, signals: Signals, partitions: Iterable[TopicPartition]
) -> None:
    """Record the weights of an empty state.

    Raises StateConflict if a state was computed with other weights, or by a version that did not
    record them, and Unavailable.
    """
    if conflict := weights_conflict(client, keys, signals):
        raise StateConflict(conflict)
    with redis_errors():
        is_recorded = client.exists(keys.weights)
    if is_recorded:
        return
    if max(applied_offsets(client, keys, partitions).values(), default=-1) >= 0:
        raise StateConflict(
            "an earlier version wrote the state in Redis, without stars in the weights of reviews: "
            "run `afterclick rebuild` once"
        )
    record_weights(client, keys, signals)


def weights_conflict(client: redis.Redis, keys: Keys, signals: Signals) -> str | None:
    """What differs between the recorded weights and the settings, and the fix; None: nothing.

    Raises Unavailable.
    """
    with redis_errors():
        recorded: Any = client.get(keys.weights)
    current = signals.encode_weights()
    if recorded is None or recorded == current:
        return None
    old, new = orjson.loads(recorded), orjson.loads(current)
    names = sorted(name for name in old | new if old.get(name) != new.get(name))
    changes = ", ".join(f"{name} {old.get(name)} → {new.get(name)}" for name in names)
    return f"the state was computed with other weights ({changes}): {_REBUILD}"

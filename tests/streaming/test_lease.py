"""A live owner keeps the lease; a dead one is replaced immediately."""

from __future__ import annotations

import os
import socket

import pytest
import redis

from afterclick.errors import StateLocked
from afterclick.settings import Settings
from streaming.positions import hold_lease


def test_a_restarted_process_with_the_same_id_is_another_owner(
    client: redis.Redis, settings: Settings
) -> None:
    """As in a container, whose first process always has id 1."""
    keys = settings.redis.keys
    key = keys.lease
    client.set(key, f"{socket.gethostname()}/{os.getpid()}/before", px=60_000)
    with hold_lease(client, keys, 10):
        holder = client.get(key)
        assert isinstance(holder, bytes)
        assert not holder.endswith(b"/before")
        with pytest.raises(StateLocked, match="another stream job"), hold_lease(client, keys, 10):
            pass
    assert client.get(key) is None

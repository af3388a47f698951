"""Whose lease it is: who lives keeps it, who has gone is replaced at once."""

from __future__ import annotations

import os
import socket

import pytest
import redis

from afterclick.errors import StateLocked
from afterclick.settings import Settings
from streaming.positions import hold_lease


def test_a_process_with_the_id_of_the_one_before_it_is_another(
    client: redis.Redis, settings: Settings
) -> None:
    """As in a container, whose first process always has the id 1."""
    keys = settings.redis.keys
    key = keys.lease
    client.set(key, f"{socket.gethostname()}/{os.getpid()}/before", px=60_000)
    with hold_lease(client, keys, 10):
        holder = client.get(key) or b""
        assert not holder.endswith(b"/before")
        with pytest.raises(StateLocked, match="another stream job"), hold_lease(client, keys, 10):
            pass
    assert client.get(key) is None

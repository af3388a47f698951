"""Whose lease it is: who lives keeps it, who has gone is replaced at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
import redis

from afterclick.errors import StateLocked
from afterclick.settings import Settings
from streaming import lease
from streaming.connection import load_functions
from streaming.job import function_library


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(settings.redis.url) as client:
        load_functions(client, function_library())
        yield client


def test_a_process_with_the_id_of_the_one_before_it_is_another(
    client: redis.Redis, settings: Settings
) -> None:
    """As in a container, whose first process always has the id 1."""
    key = settings.redis.keys.lease
    client.set(key, f"{socket.gethostname()}/{os.getpid()}/before", px=60_000)
    with lease.held(client, key, 10):
        holder = client.get(key) or b""
        assert not holder.endswith(b"/before")
        with pytest.raises(StateLocked, match="another stream job"), lease.held(client, key, 10):
            pass
    assert client.get(key) is None

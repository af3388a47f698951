"""Redis with the stream's functions, shared by the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from streaming.connection import NodeConnection, load_functions


@pytest.fixture(scope="module")
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        load_functions(client)
        yield client


@pytest.fixture(scope="module")
def connection(client: redis.Redis, redis_url: str) -> NodeConnection:
    return NodeConnection(redis_url)

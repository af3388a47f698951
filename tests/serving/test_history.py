"""The pipelined Redis connection: each reply reaches its command, through kills and reconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from afterclick.errors import Unavailable
from afterclick.io.redis_clients import create_redis
from afterclick.settings import RedisSettings
from infra.embedded.server import ValkeyServer, free_port
from serving.state.history import OnlineStore, RedisPipe
from tests.waiting import PATIENCE_S, REDIS_S

NEVER_S = 10 * PATIENCE_S


@pytest.mark.parametrize(("max_age_s", "pings"), [(NEVER_S, 1), (0.0, 50)])
def test_many_checks_of_redis_send_one_ping(
    own_redis: ValkeyServer, max_age_s: float, pings: int
) -> None:
    """The control, without reuse: one each."""

    async def main() -> None:
        store = OnlineStore(RedisSettings(url=own_redis.address, timeout_s=REDIS_S), 10)
        before = _pings(own_redis)
        for _ in range(5):
            checks = await asyncio.gather(*(store.ping(max_age_s) for _ in range(10)))
            assert all(checks)
        assert _pings(own_redis) - before == pings
        await store.close()

    uvloop.run(main())


def _pings(server: ValkeyServer) -> int:
    """How many PINGs the server has received."""
    with create_redis(RedisSettings(url=server.address, timeout_s=REDIS_S)) as client:
        stats: dict[str, dict[str, int]] = client.info("commandstats")
    return stats.get("cmdstat_ping", {"calls": 0})["calls"]


def test_replies_match_their_commands_through_kills(own_redis: ValkeyServer) -> None:
    """1,000 commands per second while the server is killed and restarted five times."""
    counts = {"right": 0, "wrong": 0, "unavailable": 0}

    async def ask(pipe: RedisPipe, number: int) -> None:
        try:
            answer = await pipe.call("ECHO", f"u{number}")
        except Unavailable:
            counts["unavailable"] += 1
            return
        counts["right" if answer == f"u{number}".encode() else "wrong"] += 1

    async def asking(pipe: RedisPipe, over: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            number = 0
            while not over.is_set():
                number += 1
                group.create_task(ask(pipe, number))
                await asyncio.sleep(0.001)

    async def more_right() -> None:
        known = counts["right"]
        async with asyncio.timeout(PATIENCE_S):
            while counts["right"] < known + 50:
                await asyncio.sleep(0.01)

    async def main() -> None:
        pipe, over = RedisPipe(own_redis.address, 0.25), asyncio.Event()
        load = asyncio.create_task(asking(pipe, over))
        for _ in range(5):
            await more_right()
            own_redis.kill()
            await asyncio.sleep(0.1)  # commands without a server
            own_redis.start()
        await more_right()
        over.set()
        await load
        await pipe.close()

    uvloop.run(main())
    assert counts["wrong"] == 0
    assert counts["unavailable"] > 0


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
def test_a_late_reply_of_a_closed_connection_is_discarded(loop: Callable[..., None]) -> None:
    """The first connection delays its reply until the second is in use."""
    second_in_use = asyncio.Event()
    connections = 0

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        first = connections == 1
        try:
            await reader.readuntil(b"secret\r\n")
            if first:
                await second_in_use.wait()
                writer.write(b"+LATE\r\n")
                return
            writer.write(b"+OK\r\n")
            while await reader.read(1000):
                writer.write(b"+MINE\r\n")
        finally:
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(peer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        pipe = RedisPipe(f"redis://:secret@127.0.0.1:{port}/0", 2.0)
        with pytest.raises(Unavailable, match="in time"):
            await pipe.call("ECHO", "one")
        for _ in range(3):
            assert await pipe.call("ECHO", "two") == b"MINE"
            second_in_use.set()
            await asyncio.sleep(0.05)
        await pipe.close()
        server.close()

    loop(main())


def test_after_refused_connections_a_new_server_is_reached(own_redis: ValkeyServer) -> None:
    async def main() -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.abort()

        port = free_port()  # no outgoing connection takes it in between
        server = await asyncio.start_server(hang_up, "127.0.0.1", port)
        pipe = RedisPipe(f"redis://127.0.0.1:{port}/0", 5.0)
        for number in range(50):
            with pytest.raises(Unavailable):
                await pipe.call("ECHO", str(number))
        server.close()
        await server.wait_closed()
        own_redis.stop()
        moved = ValkeyServer(own_redis.folder / "moved", port)
        moved.start()
        try:
            for number in range(50):
                assert await pipe.call("ECHO", str(number)) == str(number).encode()
        finally:
            moved.stop()

    uvloop.run(main())


def test_a_server_without_responses_costs_all_callers_one_timeout() -> None:
    """100 concurrent calls share one connection attempt; a cancelled call leaves nothing behind."""
    closed: list[bool] = []

    async def main() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(1000):
                pass
            closed.append(True)
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        pipe = RedisPipe(f"redis://:secret@127.0.0.1:{port}/0", 0.2)
        gone = asyncio.ensure_future(pipe.call("ECHO", "gone"))
        await asyncio.sleep(0.05)
        gone.cancel()
        loop = asyncio.get_running_loop()
        began = loop.time()
        asked = [pipe.call("ECHO", str(number)) for number in range(100)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
        assert loop.time() - began < 100 * 0.2, "each call waited for its own timeout"
        async with asyncio.timeout(PATIENCE_S):
            while not closed:
                await asyncio.sleep(0.01)
        assert len(closed) == 1, "one connection attempt, closed after the timeout"
        server.close()

    uvloop.run(main())


@pytest.mark.parametrize(
    "silent_s", [0.3, NEVER_S], ids=["reconnects", "control: keeps the connection"]
)
def test_a_connection_without_responses_is_replaced(silent_s: float) -> None:
    connections = 0

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        silent = connections == 1
        while await reader.read(1000):
            if not silent:
                writer.write(b"+HERE\r\n")
        writer.close()

    async def main() -> int:
        server = await asyncio.start_server(peer, "127.0.0.1", 0)
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        pipe = RedisPipe(url, 0.2, silent_s)
        answered = 0
        for _ in range(8):
            try:
                answered += await pipe.call("PING") == b"HERE"
            except Unavailable:
                continue
        await pipe.close()
        server.close()
        return answered

    answered = uvloop.run(main())
    assert (connections > 1) is (silent_s < 1)
    assert (answered > 0) is (silent_s < 1)

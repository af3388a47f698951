"""Push queues of slow WebSocket clients are bounded, and dropped messages are reported."""

from __future__ import annotations

import asyncio
import itertools
import time

import orjson

from afterclick.events import Action
from afterclick.state import Effect, StateChange
from serving.push import LIVE_QUEUE, Hub

NUMBERS = itertools.count()


def change(user_id: str, effect: Effect = Effect.APPLIED) -> StateChange:
    n, now = next(NUMBERS), time.time() * 1000
    return StateChange(
        user_id=user_id,
        item_id=f"item-{n}",
        action=Action.LIKE,
        event_id=f"e{n}",
        time_ms=int(now),
        topic="feedback",
        partition=0,
        offset=n,
        effect=effect,
        weight=2.0,
        first_user_item=True,
        log_ms=now,
        read_ms=now,
        applied_ms=now,
    )


def test_changes_during_a_send_are_merged_into_the_newest() -> None:
    async def found() -> tuple[StateChange, int]:
        watcher = hub.watch("ann")
        hub.deliver(changes)
        return await watcher.next()

    hub, changes = (
        Hub(),
        [change("ann"), change("bob"), change("ann"), change("ann", Effect.DUPLICATE)],
    )
    assert asyncio.run(found()) == (changes[2], 1)


def test_a_slow_live_connection_keeps_the_newest_messages_and_reports_the_dropped() -> None:
    async def read(count: int) -> list[bytes]:
        return [await slow.next() for _ in range(count)]

    async def first() -> bytes:
        return await quick.next()

    hub = Hub()
    slow, quick = hub.subscribe(), hub.subscribe()
    for n in range(LIVE_QUEUE + 7):
        hub.broadcast(orjson.dumps(n))
        assert asyncio.run(first()) == orjson.dumps(n)
    assert len(slow.queue) == LIVE_QUEUE
    assert hub.dropped == 7
    dropped, *kept = asyncio.run(read(LIVE_QUEUE + 1))
    assert orjson.loads(dropped) == {"type": "dropped", "messages": 7}
    assert [orjson.loads(message) for message in kept] == list(range(7, LIVE_QUEUE + 7))
    hub.broadcast(b"next")
    assert asyncio.run(read(1)) == [b"next"], "the drop is reported once"


def test_a_closed_connection_receives_and_stores_nothing() -> None:
    hub = Hub()
    watcher, reader = hub.watch("ann"), hub.subscribe()
    hub.unwatch(watcher)
    hub.unsubscribe(reader)
    assert hub.deliver([change("ann")]) == []
    hub.broadcast(b"x")
    assert (watcher.cause, len(reader.queue), hub.watching, hub.live) == (None, 0, 0, 0)

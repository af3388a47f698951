"""Viewers that do not keep up: what is held for them is bounded, and they are told what they
missed."""

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


def test_changes_that_come_while_a_list_is_sent_are_one_and_the_newest_counts() -> None:
    async def found() -> tuple[StateChange, int]:
        watcher = hub.watch("ann")
        hub.deliver(changes)
        return await watcher.next()

    hub, changes = (
        Hub(),
        [change("ann"), change("bob"), change("ann"), change("ann", Effect.DUPLICATE)],
    )
    assert asyncio.run(found()) == (changes[2], 1)


def test_a_live_connection_that_does_not_read_holds_the_newest_and_says_how_many_it_lost() -> None:
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
    told, *kept = asyncio.run(read(LIVE_QUEUE + 1))
    assert orjson.loads(told) == {"type": "dropped", "messages": 7}
    assert [orjson.loads(message) for message in kept] == list(range(7, LIVE_QUEUE + 7))
    hub.broadcast(b"next")
    assert asyncio.run(read(1)) == [b"next"], "it is told once"


def test_who_left_is_told_nothing_and_holds_nothing() -> None:
    hub = Hub()
    watcher, reader = hub.watch("ann"), hub.subscribe()
    hub.unwatch(watcher)
    hub.unsubscribe(reader)
    assert hub.deliver([change("ann")]) == []
    hub.broadcast(b"x")
    assert (watcher.cause, len(reader.queue), hub.watching, hub.live) == (None, 0, 0, 0)

"""The WebSocket routes.

/ws/recommendations?user_id=U  the user's list, and a new one each time the user's state changes, or when a
                               list that lacked the history or a model can be whole
/ws/live                       a sample of all events, and the figures once a second
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from enum import Enum, auto
from typing import Any

import orjson
import structlog
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from afterclick.state import StateChange
from serving.push import Watcher, cause_of
from serving.request import RecommendationRequest
from serving.routes.queries import RecommendationQuery
from serving.routes.routing import query_values
from serving.routes.shop import ask_of
from serving.service import Service

log = structlog.get_logger()
router = APIRouter()
SEND_TIMEOUT_S = 10.0
INVALID = 1008
MESSAGES_PER_S = 20
"""What a client may send; nothing it says is listened to, so that more is no use to anybody."""
PROTOCOL = "afterclick"
"""What a browser offers beside its token, to be answered with."""
LISTS = frozenset({"interests", "items", "exclude", "filters"})


@router.websocket("/ws/recommendations")
async def recommendations(socket: WebSocket) -> None:
    """Push a user's list now and after each of the user's events."""
    service: Service = socket.app.state.service
    try:
        query = RecommendationQuery.model_validate(
            query_values(socket.scope["query_string"], LISTS)
        )
    except ValidationError as error:
        await refuse(socket, str(error.errors(include_url=False)[0]["msg"]))
        return
    if query.who is None:
        await refuse(socket, "user_id and session_id are missing")
        return
    if socket.scope.get("subject") not in (None, query.who):
        await refuse(socket, "this token is for another user")
        return
    await accept(socket)
    ask = ask_of(service, query)
    watcher = service.hub.watch(ask.user_id)
    try:
        await until_closed(socket, lambda: _push(service, socket, ask, watcher))
    finally:
        service.hub.unwatch(watcher)


@router.websocket("/ws/live")
async def live(socket: WebSocket) -> None:
    """Stream events and figures."""
    service: Service = socket.app.state.service
    await accept(socket)
    reader = service.hub.join_live()

    async def stream() -> None:
        await send(socket, orjson.dumps(service.stats.now()))
        while True:
            await send(socket, await reader.next())

    try:
        await until_closed(socket, stream)
    finally:
        service.hub.leave_live(reader)


async def _push(
    service: Service, socket: WebSocket, ask: RecommendationRequest, watcher: Watcher
) -> None:
    """Send the list; then, after each change, send it again. Changes that come meanwhile are one.

    A list that was made without the user's history, or before there was a model, is sent again when it can
    be whole, with the cause it had.
    """
    cause: dict[str, Any] | None = None
    lacks = await _send_list(service, socket, ask, cause)
    while True:
        news = await _next(service, ask, watcher, lacks)
        if news is not None:
            change, coalesced = news
            cause = {
                **cause_of(change, service.catalogue.title(change.item_id)),
                "coalesced": coalesced,
            }
            cause["stamps_ms"] = {"log": change.log_ms, "applied": change.applied_ms}
        lacks = await _send_list(service, socket, ask, cause)
        if news is not None:
            service.metrics.on_push(time.time() * 1000 - change.log_ms)


class _Lacks(Enum):
    NOTHING = auto()
    HISTORY = auto()
    MODEL = auto()


async def _send_list(
    service: Service, socket: WebSocket, ask: RecommendationRequest, cause: dict[str, Any] | None
) -> _Lacks:
    """Send the list as it is now; what it lacks."""
    modelled = bool(service.snapshots.current.loaded.version)
    answer = await service.recommend(ask)
    if cause is not None:
        cause["stamps_ms"]["pushed"] = time.time() * 1000
    await send(socket, orjson.dumps({"type": "recommendations", "cause": cause, **answer}))
    if answer["degraded"]:
        return _Lacks.HISTORY
    return _Lacks.NOTHING if modelled else _Lacks.MODEL


async def _next(
    service: Service, ask: RecommendationRequest, watcher: Watcher, lacks: _Lacks
) -> tuple[StateChange, int] | None:
    """The next change; None when there is what the last list lacked."""
    while lacks is not _Lacks.NOTHING:
        with suppress(TimeoutError):
            async with asyncio.timeout(service.timings.push_retry_s):
                return await watcher.next()
        if lacks is _Lacks.MODEL and service.snapshots.current.loaded.version:
            return None
        if (
            lacks is _Lacks.HISTORY
            and not (await service.recommend(replace(ask, preview=True)))["degraded"]
        ):
            return None
    return await watcher.next()


async def until_closed(socket: WebSocket, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` until the client goes, stops reading, may no longer, or the work fails; then close."""
    task = asyncio.ensure_future(work())
    ends = (
        asyncio.ensure_future(_gone(socket)),
        asyncio.ensure_future(_no_longer_admitted(socket)),
    )
    try:
        await asyncio.wait((task, *ends), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pending in (task, *ends):
            pending.cancel()
        failed, *codes = await asyncio.gather(task, *ends, return_exceptions=True)
    if isinstance(failed, Exception) and not isinstance(
        failed, WebSocketDisconnect | TimeoutError | RuntimeError
    ):
        log.error("push failed", path=socket.url.path, exc_info=failed)
    with suppress(RuntimeError, WebSocketDisconnect):
        await socket.close(next((code for code in codes if isinstance(code, int)), 1000))


async def _gone(socket: WebSocket) -> int:
    """Return when the client disconnects or floods, with the code to close with. What it sends is ignored."""
    began, count = time.monotonic(), 0
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return 1000
        if time.monotonic() - began >= 1.0:
            began, count = time.monotonic(), 0
        count += 1
        if count > MESSAGES_PER_S:
            return INVALID


async def _no_longer_admitted(socket: WebSocket) -> int:
    """Return when the key that opened it is revoked or the token has ended, with the code to close with."""
    service: Service = socket.app.state.service
    while socket.scope["admitted"]():
        await asyncio.sleep(service.timings.reauthenticate_s)
    return INVALID


async def send(socket: WebSocket, message: bytes) -> None:
    """Send text; raises TimeoutError where the client does not read."""
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await socket.send_text(message.decode())


async def accept(socket: WebSocket) -> None:
    """Accept; of the protocols that are offered, the one that is no token."""
    await socket.accept(PROTOCOL if PROTOCOL in socket.scope.get("subprotocols", ()) else None)


async def refuse(socket: WebSocket, reason: str) -> None:
    """Close before accepting: the client sees 403."""
    await socket.close(INVALID, reason[:120].encode("ascii", "replace").decode())

"""The WebSocket routes.

/ws/recommendations?user_id=U  the user's list, and a new one after each event of the user, or once
                               a history or model that the last list lacked is available. The client
                               sends {"type": "seen", "impression_id": …} when the user has seen a
                               list: only then it counts as shown.
/ws/live                       a sample of all events, and statistics once a second
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from enum import Enum, auto
from functools import partial

import orjson
import structlog
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError

from afterclick.errors import Unavailable
from afterclick.io.connections import Slots, network_of
from afterclick.state import StateChange
from serving.problems import RETRY, problem
from serving.push import LiveReader, Watcher, cause_of
from serving.response_cache import keep_unseen
from serving.routes.fast_route import QueryReader
from serving.routes.queries import RecommendationQuery
from serving.routes.recommendations import request_of
from serving.service import Service

log = structlog.get_logger()
router = APIRouter()
SEND_TIMEOUT_S = 10.0
INVALID = 1008
MAX_MESSAGES_PER_S = 20
"""Messages a client may send, other than reports of its own lists; more close the connection."""
PROTOCOL = "afterclick"
"""The subprotocol that a browser offers next to its token, and that the API selects."""
_QUERY = QueryReader(RecommendationQuery)


class _Lacks(Enum):
    NOTHING = auto()
    LIST = auto()
    """Under load or over the rate limit."""
    HISTORY = auto()
    MODEL = auto()


@router.websocket("/ws/recommendations")
async def push_recommendations(socket: WebSocket) -> None:
    """Push a user's list now and after each of the user's events."""
    service: Service = socket.app.state.service
    try:
        query: RecommendationQuery = _QUERY.read(socket.scope["query_string"])
    except RequestValidationError as error:
        await _reject(socket, str(error.errors()[0]["msg"]))
        return
    user_id = query.effective_user_id
    if user_id is None:
        await _reject(socket, "user_id or session_id is required")
        return
    if socket.scope.get("subject") not in (None, user_id):
        await _reject(socket, "this token is for another user")
        return

    async def push() -> None:
        watcher = service.hub.watch(user_id)
        pushes = _Pushes(service, socket, query, watcher)
        try:
            await _until_closed(socket, pushes.run, pushes.on_message)
        finally:
            service.hub.unwatch(watcher)

    await _within_limits(socket, push, user=user_id)


@router.websocket("/ws/live")
async def live_stream(socket: WebSocket) -> None:
    """Stream events and statistics."""
    service: Service = socket.app.state.service

    async def stream(reader: LiveReader) -> None:
        await _send(socket, orjson.dumps(await service.all_stats.read()))
        while True:
            await _send(socket, await reader.next())

    async def live() -> None:
        reader = service.hub.subscribe()
        try:
            await _until_closed(socket, partial(stream, reader))
        finally:
            service.hub.unsubscribe(reader)

    await _within_limits(socket, live)


class _Pushes:
    """The pushed lists of one connection."""

    def __init__(
        self, service: Service, socket: WebSocket, query: RecommendationQuery, watcher: Watcher
    ) -> None:
        self._service, self._socket = service, socket
        self._request, self._watcher = request_of(service, query), watcher
        self._cost = query.cost
        self._due = query.cost - 1
        """Requests that the next list still counts as; the connection has counted as one."""

    async def run(self) -> None:
        """Push the list, then again after each change; changes in between are coalesced.

        A list made without the user's history, or before the first model, is pushed again with
        the same cause once it can be complete; one that cannot be made under load, once it can.
        """
        lacks = await self._push()
        while True:
            news = await self._next(lacks)
            if news is not None:
                change, coalesced = news
                title = self._service.catalogue.title(change.item_id)
                stamps = {"log": change.log_ms, "applied": change.applied_ms}
                self._watcher.pushed = {
                    **cause_of(change, title),
                    "coalesced": coalesced,
                    "stamps_ms": stamps,
                }
            lacks = await self._push()
            if news is not None and lacks is not _Lacks.LIST:
                self._service.metrics.on_push(time.time() * 1000 - change.log_ms)

    async def _push(self) -> _Lacks:
        """Push the current list; returns what it lacks."""
        has_model = bool(self._service.snapshots.current.loaded.version)
        if not await self._is_within_limit():
            return _Lacks.LIST
        try:
            recommendation = await self._service.push(self._request)
        except Unavailable:
            return _Lacks.LIST
        self._due = self._cost
        body = recommendation.body
        keep_unseen(self._watcher.unseen, recommendation)
        cause = self._watcher.pushed
        if cause is not None:
            cause["stamps_ms"]["pushed"] = time.time() * 1000
        message = {"type": "recommendations", "cause": cause, **body}
        await _send(self._socket, orjson.dumps(message))
        if body["degraded"]:
            return _Lacks.HISTORY
        return _Lacks.NOTHING if has_model else _Lacks.MODEL

    async def _is_within_limit(self) -> bool:
        """Count the next list in the rate limit, once."""
        if self._due and await self._socket.scope["charge"](self._due) is not None:
            return False
        self._due = 0
        return True

    def on_message(self, text: str) -> bool:
        """Count a list as shown, once, when the client reports it as seen; False for the rest."""
        seen = None
        with suppress(ValueError, TypeError, KeyError):
            message = orjson.loads(text)
            if message["type"] == "seen":
                seen = self._watcher.unseen.pop(message["impression_id"])
        if seen is None:
            return False
        self._service.on_shown(seen)
        return True

    async def _next(self, lacks: _Lacks) -> tuple[StateChange, int] | None:
        """The next change; None once what the last list lacked is available."""
        while lacks is not _Lacks.NOTHING:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._service.timings.push_retry_s):
                    return await self._watcher.next()
            if await self._is_available(lacks):
                return None
        return await self._watcher.next()

    async def _is_available(self, lacks: _Lacks) -> bool:
        if lacks is _Lacks.LIST:
            return True
        if lacks is _Lacks.MODEL:
            return bool(self._service.snapshots.current.loaded.version)
        try:
            preview = await self._service.recommend(replace(self._request, preview=True))
        except Unavailable:
            return False
        return not preview["degraded"]


async def _until_closed(
    socket: WebSocket,
    work: Callable[[], Awaitable[None]],
    on_message: Callable[[str], bool] = lambda text: False,
) -> None:
    """Run `work` until it fails, the client leaves or stops reading, or its credentials expire."""
    task = asyncio.ensure_future(work())
    ends = (
        asyncio.ensure_future(_disconnected(socket, on_message)),
        asyncio.ensure_future(_credentials_expired(socket)),
    )
    try:
        await asyncio.wait((task, *ends), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pending in (task, *ends):
            pending.cancel()
        failed, *codes = await asyncio.gather(task, *ends, return_exceptions=True)
    expected = WebSocketDisconnect | TimeoutError | RuntimeError
    if isinstance(failed, Exception) and not isinstance(failed, expected):
        log.error("push failed", path=socket.url.path, exc_info=failed)
    with suppress(RuntimeError, WebSocketDisconnect):
        await socket.close(next((code for code in codes if isinstance(code, int)), 1000))


async def _disconnected(socket: WebSocket, on_message: Callable[[str], bool]) -> int:
    """The close code, once the client disconnects or floods the connection."""
    began, count = time.monotonic(), 0
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return 1000
        if time.monotonic() - began >= 1.0:
            began, count = time.monotonic(), 0
        count += not on_message(message.get("text") or "")
        if count > MAX_MESSAGES_PER_S:
            return INVALID


async def _credentials_expired(socket: WebSocket) -> int:
    """The close code, once the key is revoked or the token has expired."""
    service: Service = socket.app.state.service
    while socket.scope["admitted"]():
        await asyncio.sleep(service.timings.reauthenticate_s)
    return INVALID


async def _send(socket: WebSocket, message: bytes) -> None:
    """Send text; raises TimeoutError if the client does not read."""
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await socket.send_text(message.decode())


async def _within_limits(
    socket: WebSocket, serve: Callable[[], Awaitable[None]], **user: str
) -> None:
    """Accept and serve a connection. Over a limit of WebSockets, refuse it: 429 or 503."""
    slots: Slots = socket.app.state.service.websockets
    address = network_of(socket.client.host if socket.client else "unknown")
    keys = {**user, "address": address, "total": ""}
    limit = slots.take(**keys)
    if limit is not None:
        status, of = (503, "") if limit == "total" else (429, f" for this {limit}")
        await socket.send_denial_response(problem(status, f"too many WebSockets{of}", RETRY))
        return
    try:
        await _accept(socket)
        await serve()
    finally:
        slots.release(**keys)


async def _accept(socket: WebSocket) -> None:
    """Accept with the non-token subprotocol."""
    await socket.accept(PROTOCOL if PROTOCOL in socket.scope.get("subprotocols", ()) else None)


async def _reject(socket: WebSocket, reason: str) -> None:
    """Close before accepting: the client receives 403."""
    await socket.close(INVALID, reason[:120].encode("ascii", "replace").decode())

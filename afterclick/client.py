"""A typed client of the API: `Client` for threads, `AsyncClient` for the event loop.

Needs the package httpx2 (in the extras `ingest` and `ui`). Feedback is sent again after a 503 or a lost
connection, under the same event id, so that it takes effect once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Self, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ConfigDict, ValidationError

from afterclick import events
from afterclick.errors import BadInput, Unavailable
from afterclick.events import Action

TRIES = 4
LONGEST_WAIT_S = 5.0


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class RankedItem(_Answer):
    """One row of a list. `parts` add up to `score`; lists for everybody have no parts."""

    item_id: str
    title: str | None = None
    categories: tuple[str, ...] = ()
    score: float
    source: str = ""
    reason: str = ""
    parts: dict[str, float] = {}
    badges: tuple[str, ...] = ()
    propensity: float = 1.0


class Recommendations(_Answer):
    """A list, and what it is worth: its source, its model, whether anything was away."""

    user_id: str | None
    source: str
    degraded: bool
    brief: bool = False
    """Whether the server was busy and ranked fewer candidates."""
    fresh: bool | None = None
    model_version: str | None
    impression_id: str | None
    """None where the list was only a preview."""
    as_of: dict[str, int]
    items: tuple[RankedItem, ...]
    next: str | None = None


class Batch(_Answer):
    """A list per user, in the order asked."""

    lists: tuple[Recommendations, ...]


class Items(_Answer):
    """A list that is for everybody."""

    items: tuple[RankedItem, ...]


class ItemDetails(_Answer):
    """One item of the catalogue with its live counts."""

    item_id: str
    title: str | None
    categories: tuple[str, ...]
    brand: str | None
    price: float | None
    interactions: int
    trends: dict[str, float]
    in_model: bool


class HistoryRow(_Answer):
    """One thing a user did."""

    event_id: str
    item_id: str
    title: str | None
    action: Action
    rating: float | None
    time: datetime


class History(_Answer):
    """What a user did, newest first."""

    user_id: str
    degraded: bool
    events: tuple[HistoryRow, ...]


class Accepted(_Answer):
    """Kafka has the event. Give `position` as `after` to see it in the next list."""

    event_id: str
    position: str


T = TypeVar("T", bound=_Answer)


@dataclass(frozen=True)
class _Call(Generic[T]):
    """One request and the type of its answer."""

    answer: type[T]
    method: str
    path: str
    query: dict[str, Any] | None = None
    body: dict[str, Any] | None = None

    def read(self, response: httpx2.Response) -> T:
        """The answer. Raises BadInput where the API refuses, Unavailable where it cannot."""
        if response.status_code >= 400:
            kind = Unavailable if response.status_code in (429, 500, 502, 503, 504) else BadInput
            raise kind(_detail(response))
        try:
            return self.answer.model_validate_json(response.content)
        except ValidationError as error:
            raise Unavailable(f"{response.url} does not answer as the Afterclick API does: {error}") from None


def _recommendations(
    user_id: str | None,
    n: int | None,
    interests: Sequence[str],
    items: Sequence[str],
    exclude: Sequence[str],
    category: str | None,
    after: str | None,
    more: dict[str, Any],
) -> _Call[Recommendations]:
    body = _given(
        **more,
        user_id=user_id,
        n=n,
        interests=list(interests),
        items=list(items),
        exclude=list(exclude),
        category=category,
        after=after,
    )
    return _Call(Recommendations, "POST", "/recommendations", body=body)


def _batch(user_ids: Sequence[str], n: int | None) -> _Call[Batch]:
    return _Call(Batch, "POST", "/recommendations/batch", body=_given(user_ids=list(user_ids), n=n))


def _similar(item_id: str, n: int | None, by: str | None) -> _Call[Items]:
    return _Call(Items, "GET", "/similar-items", _given(item_id=item_id, n=n, by=by))


def _latest(n: int | None, category: str | None) -> _Call[Items]:
    return _Call(Items, "GET", "/latest", _given(n=n, category=category))


def _popular(n: int | None, window: str | None, category: str | None) -> _Call[Items]:
    return _Call(Items, "GET", "/popular", _given(n=n, window=window, category=category))


def _item(item_id: str) -> _Call[ItemDetails]:
    return _Call(ItemDetails, "GET", f"/items/{quote(item_id, safe='')}")


def _history(user_id: str, n: int | None) -> _Call[History]:
    return _Call(History, "GET", f"/users/{quote(user_id, safe='')}/history", _given(n=n))


def _feedback(user_id: str, item_id: str, action: Action | str, more: dict[str, Any]) -> _Call[Accepted]:
    body = _given(user_id=user_id, item_id=item_id, action=str(action), **more)
    body.setdefault("event_id", events.new_id())
    if isinstance(body.get("time"), datetime):
        body["time"] = body["time"].isoformat()
    return _Call(Accepted, "POST", "/feedback", body=body)


class Client:
    """Speaks to the API at `url`. Use it as a context manager, or `close` it."""

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 5.0) -> None:
        self._http = httpx2.Client(base_url=url.rstrip("/"), timeout=timeout_s, headers=_headers(key))

    def recommendations(
        self,
        user_id: str | None = None,
        n: int | None = None,
        *,
        interests: Sequence[str] = (),
        items: Sequence[str] = (),
        exclude: Sequence[str] = (),
        category: str | None = None,
        after: str | None = None,
        **more: Any,
    ) -> Recommendations:
        """A list for a user or, with `items`, for a visitor. `after` waits for the event at that position.

        `more` is what the API takes: session_id, policy, filters, offset, cursor, diversity, preview …
        """
        return self._send(_recommendations(user_id, n, interests, items, exclude, category, after, more))

    def batch(self, user_ids: Sequence[str], n: int | None = None) -> Batch:
        """Lists for up to 500 users."""
        return self._send(_batch(user_ids, n))

    def similar(self, item_id: str, n: int | None = None, by: str | None = None) -> Items:
        """Items like this one; `by="bought"`: chosen by the same users, `by="content"`: described alike."""
        return self._send(_similar(item_id, n, by))

    def latest(self, n: int | None = None, category: str | None = None) -> Items:
        return self._send(_latest(n, category))

    def popular(self, n: int | None = None, window: str | None = None, category: str | None = None) -> Items:
        return self._send(_popular(n, window, category))

    def item(self, item_id: str) -> ItemDetails:
        return self._send(_item(item_id))

    def history(self, user_id: str, n: int | None = None) -> History:
        return self._send(_history(user_id, n))

    def feedback(self, user_id: str, item_id: str, action: Action | str, **more: Any) -> Accepted:
        """Tell what a user did. `more` is what the API takes: rating, impression_id, session_id, time, …"""
        return self._send(_feedback(user_id, item_id, action, more))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, call: _Call[T]) -> T:
        for wait in _waits():
            try:
                response = self._http.request(call.method, call.path, params=call.query, json=call.body)
            except httpx2.HTTPError as error:
                if wait is None:
                    raise _away(self._http.base_url, error) from None
                time.sleep(wait)
                continue
            if response.status_code == 503 and wait is not None:
                time.sleep(_retry_after(response, wait))
                continue
            return call.read(response)
        raise AssertionError("the last try returns or raises")


class AsyncClient:
    """The same for the event loop."""

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 5.0) -> None:
        self._http = httpx2.AsyncClient(base_url=url.rstrip("/"), timeout=timeout_s, headers=_headers(key))

    async def recommendations(
        self,
        user_id: str | None = None,
        n: int | None = None,
        *,
        interests: Sequence[str] = (),
        items: Sequence[str] = (),
        exclude: Sequence[str] = (),
        category: str | None = None,
        after: str | None = None,
        **more: Any,
    ) -> Recommendations:
        """A list for a user or, with `items`, for a visitor. `after` waits for the event at that position.

        `more` is what the API takes: session_id, policy, filters, offset, cursor, diversity, preview …
        """
        return await self._send(
            _recommendations(user_id, n, interests, items, exclude, category, after, more)
        )

    async def batch(self, user_ids: Sequence[str], n: int | None = None) -> Batch:
        """Lists for up to 500 users."""
        return await self._send(_batch(user_ids, n))

    async def similar(self, item_id: str, n: int | None = None, by: str | None = None) -> Items:
        """Items like this one; `by="bought"`: chosen by the same users, `by="content"`: described alike."""
        return await self._send(_similar(item_id, n, by))

    async def latest(self, n: int | None = None, category: str | None = None) -> Items:
        return await self._send(_latest(n, category))

    async def popular(
        self, n: int | None = None, window: str | None = None, category: str | None = None
    ) -> Items:
        return await self._send(_popular(n, window, category))

    async def item(self, item_id: str) -> ItemDetails:
        return await self._send(_item(item_id))

    async def history(self, user_id: str, n: int | None = None) -> History:
        return await self._send(_history(user_id, n))

    async def feedback(self, user_id: str, item_id: str, action: Action | str, **more: Any) -> Accepted:
        """Tell what a user did. `more` is what the API takes: rating, impression_id, session_id, time, …"""
        return await self._send(_feedback(user_id, item_id, action, more))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(self, call: _Call[T]) -> T:
        for wait in _waits():
            try:
                response = await self._http.request(call.method, call.path, params=call.query, json=call.body)
            except httpx2.HTTPError as error:
                if wait is None:
                    raise _away(self._http.base_url, error) from None
                await asyncio.sleep(wait)
                continue
            if response.status_code == 503 and wait is not None:
                await asyncio.sleep(_retry_after(response, wait))
                continue
            return call.read(response)
        raise AssertionError("the last try returns or raises")


def _waits() -> Iterator[float | None]:
    """Seconds to wait after each try; None after the last."""
    yield from (0.1 * 3**i for i in range(TRIES - 1))
    yield None


def _retry_after(response: httpx2.Response, wait: float) -> float:
    asked = response.headers.get("retry-after", "")
    return min(float(asked) if asked.isdigit() else wait, LONGEST_WAIT_S)


def _away(url: object, error: httpx2.HTTPError) -> Unavailable:
    return Unavailable(f"no answer from the API at {url}: {error or type(error).__name__}")


def _headers(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def _given(**values: Any) -> dict[str, Any]:
    """The values that were given: neither None nor empty."""
    return {name: value for name, value in values.items() if value is not None and value != []}


def _detail(response: httpx2.Response) -> str:
    """The one line of a problem+json answer."""
    try:
        detail = response.json().get("detail")
    except (ValueError, AttributeError):
        detail = None
    return str(detail or f"the API answered {response.status_code}")

"""The two clients: the same calls, with threads or on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import httpx2

from afterclick.client import calls
from afterclick.client.answers import (
    Accepted,
    Batch,
    Categories,
    FoundItems,
    History,
    ItemDetails,
    Items,
    JsonObject,
    Recommendations,
)
from afterclick.client.calls import Call, T
from afterclick.errors import Unavailable
from afterclick.events import Action

TRIES = 4
LONGEST_WAIT_S = 5.0


class Client:
    """Speaks to the API at `url`. Use it as a context manager, or `close` it."""

    def __init__(
        self, url: str, key: str | None = None, timeout_s: float = 5.0, tries: int = TRIES
    ) -> None:
        """`tries`: how often a call is sent while the API is away, or says 503."""
        self.url, self._tries = url.rstrip("/"), tries
        self.headers = _headers(key)
        """What every call carries."""
        self._http = httpx2.Client(base_url=self.url, timeout=timeout_s, headers=self.headers)

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
        return self._send(
            calls.recommendations(user_id, n, interests, items, exclude, category, after, more)
        )

    def batch(self, user_ids: Sequence[str], n: int | None = None) -> Batch:
        """Lists for up to 500 users."""
        return self._send(calls.batch(user_ids, n))

    def explain(self, impression_id: str) -> Recommendations:
        """What a list showed, and why. Raises BadInput for one of too long ago."""
        return self._send(calls.explain(impression_id))

    def similar(self, item_id: str, n: int | None = None, by: str | None = None) -> Items:
        """Items like this one; `by="bought"`: chosen by the same users, `by="content"`: described alike."""
        return self._send(calls.similar(item_id, n, by))

    def latest(self, n: int | None = None, category: str | None = None) -> Items:
        return self._send(calls.latest(n, category))

    def popular(
        self, n: int | None = None, window: str | None = None, category: str | None = None
    ) -> Items:
        return self._send(calls.popular(n, window, category))

    def search(self, words: str, n: int | None = None) -> FoundItems:
        """Items whose title, category or id has words that begin like these."""
        return self._send(calls.search(words, n))

    def categories(self) -> Categories:
        return self._send(calls.categories())

    def item(self, item_id: str) -> ItemDetails:
        return self._send(calls.item(item_id))

    def history(self, user_id: str, n: int | None = None) -> History:
        return self._send(calls.history(user_id, n))

    def feedback(
        self, user_id: str | None, item_id: str, action: Action | str, **more: Any
    ) -> Accepted:
        """Tell what a user did, or a visitor (None, and `session_id`).

        `more` is what the API takes: rating, impression_id, session_id, time, …
        """
        return self._send(calls.feedback(user_id, item_id, action, more))

    def get(self, path: str, **query: Any) -> JsonObject:
        """Any other route, as it answers."""
        return self._send(calls.get(path, query)).root

    def post(self, path: str, body: JsonObject) -> JsonObject:
        """Any other route, as it answers: what an administrator does."""
        return self._send(calls.post(path, body)).root

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, call: Call[T]) -> T:
        for wait in _waits(self._tries if call.again else 1):
            try:
                response = self._http.request(
                    call.method, call.path, params=call.query, json=call.body
                )
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

    def __init__(
        self, url: str, key: str | None = None, timeout_s: float = 5.0, tries: int = TRIES
    ) -> None:
        """`tries`: how often a call is sent while the API is away, or says 503."""
        self.url, self._tries = url.rstrip("/"), tries
        self.headers = _headers(key)
        """What every call carries, WebSockets too."""
        self._http = httpx2.AsyncClient(base_url=self.url, timeout=timeout_s, headers=self.headers)

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
            calls.recommendations(user_id, n, interests, items, exclude, category, after, more)
        )

    async def batch(self, user_ids: Sequence[str], n: int | None = None) -> Batch:
        """Lists for up to 500 users."""
        return await self._send(calls.batch(user_ids, n))

    async def explain(self, impression_id: str) -> Recommendations:
        """What a list showed, and why. Raises BadInput for one of too long ago."""
        return await self._send(calls.explain(impression_id))

    async def similar(self, item_id: str, n: int | None = None, by: str | None = None) -> Items:
        """Items like this one; `by="bought"`: chosen by the same users, `by="content"`: described alike."""
        return await self._send(calls.similar(item_id, n, by))

    async def latest(self, n: int | None = None, category: str | None = None) -> Items:
        return await self._send(calls.latest(n, category))

    async def popular(
        self, n: int | None = None, window: str | None = None, category: str | None = None
    ) -> Items:
        return await self._send(calls.popular(n, window, category))

    async def search(self, words: str, n: int | None = None) -> FoundItems:
        """Items whose title, category or id has words that begin like these."""
        return await self._send(calls.search(words, n))

    async def categories(self) -> Categories:
        return await self._send(calls.categories())

    async def item(self, item_id: str) -> ItemDetails:
        return await self._send(calls.item(item_id))

    async def history(self, user_id: str, n: int | None = None) -> History:
        return await self._send(calls.history(user_id, n))

    async def feedback(
        self, user_id: str | None, item_id: str, action: Action | str, **more: Any
    ) -> Accepted:
        """Tell what a user did, or a visitor (None, and `session_id`).

        `more` is what the API takes: rating, impression_id, session_id, time, …
        """
        return await self._send(calls.feedback(user_id, item_id, action, more))

    async def get(self, path: str, **query: Any) -> JsonObject:
        """Any other route, as it answers."""
        return (await self._send(calls.get(path, query))).root

    async def post(self, path: str, body: JsonObject) -> JsonObject:
        """Any other route, as it answers: what an administrator does."""
        return (await self._send(calls.post(path, body))).root

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(self, call: Call[T]) -> T:
        for wait in _waits(self._tries if call.again else 1):
            try:
                response = await self._http.request(
                    call.method, call.path, params=call.query, json=call.body
                )
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


def _waits(tries: int) -> Iterator[float | None]:
    """Seconds to wait after each try; None after the last."""
    yield from (0.1 * 3**i for i in range(tries - 1))
    yield None


def _retry_after(response: httpx2.Response, wait: float) -> float:
    asked = response.headers.get("retry-after", "")
    return min(float(asked) if asked.isdigit() else wait, LONGEST_WAIT_S)


def _away(url: object, error: httpx2.HTTPError) -> Unavailable:
    return Unavailable(f"no answer from the API at {url}: {error or type(error).__name__}")


def _headers(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}

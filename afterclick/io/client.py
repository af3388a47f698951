"""A typed client of the API: `Client` for threads, `AsyncClient` for the event loop.

Needs the extra `afterclick[client]`. Calls that take effect once are retried after connection
errors and 503; feedback keeps its event id, so that a retry counts once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload
from urllib.parse import quote

import orjson

from afterclick import api, events
from afterclick.arrays import Json
from afterclick.errors import BadInput, MissingExtra, Unavailable
from afterclick.events import Action

try:
    import httpx2
except ModuleNotFoundError:
    raise MissingExtra("the client needs httpx2: pip install 'afterclick[client]'") from None

ATTEMPTS = 4
_MAX_WAIT_S = 5.0
_TRANSIENT = (429, 500, 502, 503, 504)
P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=api.ApiModel)


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how its response is parsed."""

    parse: Callable[[bytes], T]
    method: str
    path: str
    query: Json | None = None
    body: Json | None = None
    repeatable: bool = True
    """Sending it twice has the effect of sending it once."""

    def result(self, response: httpx2.Response) -> T:
        """The parsed response. Raises BadInput for a refused call, Unavailable for a failed one."""
        if response.status_code >= 400:
            kind = Unavailable if response.status_code in _TRANSIENT else BadInput
            raise kind(_detail(response))
        try:
            return self.parse(response.content)
        except ValueError as error:
            raise Unavailable(
                f"{response.url} is not the Afterclick API or another version: {error}"
            ) from None


class _Method(Generic[P, T]):
    """A method that builds a Call; each client sends it its own way."""

    def __init__(self, build: Callable[Concatenate[Any, P], Call[T]]) -> None:
        self._build = build

    @overload
    def __get__(self, client: None, owner: type) -> Callable[Concatenate[Any, P], Call[T]]: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Any, owner: type) -> Callable[..., Any]:
        if client is None:
            return self._build
        send, build = client.send, self._build

        @wraps(build)
        def method(*args: Any, **kwargs: Any) -> Any:
            return send(build(client, *args, **kwargs))

        return method


class _Calls:
    """The calls of the API, for both clients."""

    @_Method
    def recommendations(
        self,
        /,
        user_id: str | None = None,
        n: int | None = None,
        *,
        interests: Sequence[str] = (),
        items: Sequence[str] = (),
        after: str | None = None,
        **more: Any,
    ) -> Call[api.Recommendations]:
        """A list for a user or, with `items`, for a visitor. `after` waits for the event at that
        position.

        `more`: other fields of the API, as session_id, exclude, category, policy, filters, offset,
        cursor, diversity, preview.
        """
        body = _given(
            **more,
            user_id=user_id,
            n=n,
            interests=list(interests),
            items=list(items),
            after=after,
        )
        parse = api.Recommendations.model_validate_json
        return Call(parse, "POST", "/recommendations", body=body)

    @_Method
    def batch(self, user_ids: Sequence[str], n: int | None = None) -> Call[api.Batch]:
        """Lists for up to 500 users."""
        body = _given(user_ids=list(user_ids), n=n)
        return Call(api.Batch.model_validate_json, "POST", "/recommendations/batch", body=body)

    @_Method
    def explain(self, impression_id: str) -> Call[api.Recommendations]:
        """A list as it was shown. Raises BadInput for an impression that is no longer in memory."""
        return _get(api.Recommendations, f"/explain/{quote(impression_id, safe='')}")

    @_Method
    def similar(
        self, item_id: str, n: int | None = None, by: str | None = None
    ) -> Call[api.SimilarItems]:
        """Similar items; `by="bought"`: chosen by the same users, `by="content"`: similar text."""
        return _get(api.SimilarItems, "/similar-items", item_id=item_id, n=n, by=by)

    @_Method
    def latest(self, n: int | None = None, category: str | None = None) -> Call[api.LatestItems]:
        """The newest items."""
        return _get(api.LatestItems, "/latest", n=n, category=category)

    @_Method
    def popular(
        self, n: int | None = None, window: str | None = None, category: str | None = None
    ) -> Call[api.PopularItems]:
        """The most popular items; with `window` (hour, day, month) by trend."""
        return _get(api.PopularItems, "/popular", n=n, window=window, category=category)

    @_Method
    def search(self, words: str, n: int | None = None) -> Call[api.FoundItems]:
        """Items by the beginnings of words in title, category or id."""
        return _get(api.FoundItems, "/search", q=words, n=n)

    @_Method
    def categories(self) -> Call[api.Categories]:
        """The categories and their number of items."""
        return _get(api.Categories, "/categories")

    @_Method
    def item(self, item_id: str) -> Call[api.ItemDetails]:
        """One item."""
        return _get(api.ItemDetails, f"/items/{quote(item_id, safe='')}")

    @_Method
    def history(self, user_id: str, n: int | None = None) -> Call[api.History]:
        """A user's actions, newest first."""
        return _get(api.History, f"/users/{quote(user_id, safe='')}/history", n=n)

    @_Method
    def feedback(
        self, /, user_id: str | None, item_id: str, action: Action | str, **more: Any
    ) -> Call[api.Accepted]:
        """Report an action of a user, or of a visitor (None, and `session_id`).

        `more`: other fields of the API, as rating, impression_id, session_id, event_id, time.
        """
        body = _given(user_id=user_id, item_id=item_id, action=str(action), **more)
        body.setdefault("event_id", events.new_id())
        if isinstance(body.get("time"), datetime):
            body["time"] = body["time"].isoformat()
        return Call(api.Accepted.model_validate_json, "POST", "/feedback", body=body)

    @_Method
    def get(self, /, path: str, **query: Any) -> Call[Json]:
        """GET any other route."""
        return Call(orjson.loads, "GET", path, _given(**query))

    @_Method
    def post(self, path: str, body: Json) -> Call[Json]:
        """POST to any other route, without retries."""
        return Call(orjson.loads, "POST", path, body=body, repeatable=False)

    @_Method
    def delete(self, path: str) -> Call[Json]:
        """DELETE a resource of any other route, without retries."""
        return Call(orjson.loads, "DELETE", path, repeatable=False)


class Client(_Calls):
    """A blocking client of the API at `url`. A context manager; or call `close`."""

    def __init__(
        self, url: str, key: str | None = None, timeout_s: float = 5.0, attempts: int = ATTEMPTS
    ) -> None:
        """`attempts`: how often a call is sent while the API is unreachable or answers 503."""
        self.url, self._attempts = url.rstrip("/"), attempts
        self.headers = _headers(key)
        """Sent with every call."""
        self._http = httpx2.Client(base_url=self.url, timeout=timeout_s, headers=self.headers)

    def send(self, call: Call[T]) -> T:
        exchange = _exchange(call, self.url, self._attempts)
        wait_s = next(exchange)
        while True:
            time.sleep(wait_s)
            try:
                response = self._http.request(
                    call.method, call.path, params=call.query, json=call.body
                )
                wait_s = exchange.send(response)
            except httpx2.HTTPError as error:
                wait_s = exchange.throw(error)
            except StopIteration as done:
                result: T = done.value
                return result

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Calls):
    """The same for the event loop."""

    def __init__(
        self, url: str, key: str | None = None, timeout_s: float = 5.0, attempts: int = ATTEMPTS
    ) -> None:
        """`attempts`: how often a call is sent while the API is unreachable or answers 503."""
        self.url, self._attempts = url.rstrip("/"), attempts
        self.headers = _headers(key)
        """Sent with every call; WebSockets need them, too."""
        self._http = httpx2.AsyncClient(base_url=self.url, timeout=timeout_s, headers=self.headers)

    async def send(self, call: Call[T]) -> T:
        exchange = _exchange(call, self.url, self._attempts)
        wait_s = next(exchange)
        while True:
            await asyncio.sleep(wait_s)
            try:
                response = await self._http.request(
                    call.method, call.path, params=call.query, json=call.body
                )
                wait_s = exchange.send(response)
            except httpx2.HTTPError as error:
                wait_s = exchange.throw(error)
            except StopIteration as done:
                result: T = done.value
                return result

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _exchange(call: Call[T], url: str, attempts: int) -> Generator[float, httpx2.Response, T]:
    """Yields the seconds to wait before each request, takes its response, and returns the result.

    A connection error is thrown into the generator.
    """
    wait_s, next_wait_s = 0.0, 0.1
    for attempts_left in reversed(range(attempts if call.repeatable else 1)):
        try:
            response = yield wait_s
        except httpx2.HTTPError as error:
            if not attempts_left:
                cause = error or type(error).__name__
                raise Unavailable(f"no answer from the API at {url}: {cause}") from None
            wait_s = next_wait_s
        else:
            if response.status_code != 503 or not attempts_left:
                return call.result(response)
            wait_s = _retry_after(response, next_wait_s)
        next_wait_s *= 3
    raise AssertionError("the last attempt returns or raises")


def _get(model: type[M], path: str, **query: Any) -> Call[M]:
    return Call(model.model_validate_json, "GET", path, _given(**query))


def _given(**values: Any) -> Json:
    """The values that are neither None nor empty."""
    return {name: value for name, value in values.items() if value is not None and value != []}


def _retry_after(response: httpx2.Response, default_s: float) -> float:
    value = response.headers.get("retry-after", "")
    return min(float(value) if value.isdigit() else default_s, _MAX_WAIT_S)


def _detail(response: httpx2.Response) -> str:
    """The one line of a problem+json response."""
    try:
        body = response.json()
    except ValueError:
        body = None
    detail = (body.get("detail") or body.get("title")) if isinstance(body, dict) else None
    return detail if isinstance(detail, str) else f"the API answered {response.status_code}"


def _headers(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}

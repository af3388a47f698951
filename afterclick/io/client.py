"""A typed client of the API: `Client` for threads, `AsyncClient` for the event loop.

Needs the extra `afterclick[client]`. Calls that take effect once are retried after connection
errors and 503; feedback keeps its event id, so that a retry counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload
from urllib.parse import quote

import orjson
import stamina

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
_UNAVAILABLE = (429, 500, 502, 504)
P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=api.ApiModel)


class _Transient(Unavailable):
    """No connection, or 503; `wait_s` is the server's Retry-After."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how its response is parsed."""

    parse: Callable[[bytes], T]
    method: str
    path: str
    query: Json | None = None
    body: Json | list[Json] | None = None
    repeatable: bool = True
    """Sending it twice has the effect of sending it once."""

    def backoff(self, error: Exception) -> bool | float:
        """Whether to send the call again after an error, or the seconds to wait before that."""
        if not (self.repeatable and isinstance(error, _Transient)):
            return False
        return True if error.wait_s is None else error.wait_s

    def result(self, response: httpx2.Response) -> T:
        """The parsed response. Raises BadInput for a refused call, Unavailable for a failed one."""
        if response.status_code == 503:
            raise _Transient(_detail(response), _retry_after(response))
        if response.status_code >= 400:
            kind = Unavailable if response.status_code in _UNAVAILABLE else BadInput
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
        return _get(api.Recommendations, f"/explain/{_segment(impression_id)}")

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
        """The most popular items; with `window` (hour, day, week, month) by trend."""
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
        return _get(api.ItemDetails, f"/items/{_segment(item_id)}")

    @_Method
    def history(self, user_id: str, n: int | None = None) -> Call[api.History]:
        """A user's actions, newest first."""
        return _get(api.History, f"/users/{_segment(user_id)}/history", n=n)

    @_Method
    def feedback(
        self, /, user_id: str | None, item_id: str, action: Action | str, **more: Any
    ) -> Call[api.Accepted]:
        """Report an action of a user, or of a visitor (None, and `session_id`).

        `more`: other fields of the API, as rating, impression_id, session_id, event_id, time.
        """
        body = _event(_given(user_id=user_id, item_id=item_id, action=str(action), **more))
        return Call(api.Accepted.model_validate_json, "POST", "/feedback", body=body)

    @_Method
    def feedback_list(self, feedback: Iterable[Json]) -> Call[api.AcceptedList]:
        """Report up to 1,000 actions, given as the fields of the API; a result for each."""
        body = [_event(fields) for fields in feedback]
        return Call(api.AcceptedList.model_validate_json, "POST", "/feedback", body=body)

    @_Method
    def merge_session(
        self, session_id: str, user_id: str, after: str | None = None
    ) -> Call[api.SessionMerge]:
        """At login: copy the events of a session to its user's history, each once."""
        path = f"/sessions/{_segment(session_id)}/user"
        body = _given(user_id=user_id, after=after)
        return Call(api.SessionMerge.model_validate_json, "POST", path, body=body)

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
        # a body, as without a key the API requires JSON for every change
        return Call(orjson.loads, "DELETE", path, body={}, repeatable=False)


class Client(_Calls):
    """A blocking client of the API at `url`. A context manager; or call `close`."""

    def __init__(
        self, url: str, key: str | None = None, timeout_s: float = 5.0, attempts: int = ATTEMPTS
    ) -> None:
        """`attempts`: how often a call is sent while the API is unreachable or answers 503."""
        self.url, self.headers = url.rstrip("/"), _headers(key)
        self._retry = stamina.RetryingCaller(attempts, timeout=None, wait_jitter=0.1)
        self._http = httpx2.Client(base_url=self.url, timeout=timeout_s, headers=self.headers)

    def send(self, call: Call[T]) -> T:
        return self._retry(call.backoff, self._send_once, call)

    def _send_once(self, call: Call[T]) -> T:
        with _connection(self.url):
            response = self._http.request(call.method, call.path, params=call.query, json=call.body)
        return call.result(response)

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
        self.url, self.headers = url.rstrip("/"), _headers(key)
        self._retry = stamina.AsyncRetryingCaller(attempts, timeout=None, wait_jitter=0.1)
        self._http = httpx2.AsyncClient(base_url=self.url, timeout=timeout_s, headers=self.headers)

    async def send(self, call: Call[T]) -> T:
        return await self._retry(call.backoff, self._send_once, call)

    async def _send_once(self, call: Call[T]) -> T:
        with _connection(self.url):
            response = await self._http.request(
                call.method, call.path, params=call.query, json=call.body
            )
        return call.result(response)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@contextmanager
def _connection(url: str) -> Iterator[None]:
    """Raises _Transient for a failed connection."""
    try:
        yield
    except httpx2.HTTPError as error:
        cause = str(error) or type(error).__name__
        raise _Transient(f"no answer from the API at {url}: {cause}") from None


def _get(model: type[M], path: str, **query: Any) -> Call[M]:
    return Call(model.model_validate_json, "GET", path, _given(**query))


def _event(fields: Json) -> Json:
    """Feedback as it is sent: with an event id, so that it can be sent again."""
    time = fields.get("time")
    sent = {"event_id": events.new_id(), **fields}
    return sent | {"time": time.isoformat()} if isinstance(time, datetime) else sent


def _segment(value: str) -> str:
    """An id as a segment of a path. `.` and `..` would be removed by clients."""
    return quote(value, safe="") if value.strip(".") else value.replace(".", "%2E")


def _given(**values: Any) -> Json:
    """The values that are neither None nor empty."""
    return {name: value for name, value in values.items() if value is not None and value != []}


def _retry_after(response: httpx2.Response) -> float | None:
    value = response.headers.get("retry-after", "")
    return min(float(value), _MAX_WAIT_S) if value.isdigit() else None


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

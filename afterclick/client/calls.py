"""The requests the clients send, each with the type of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ValidationError

from afterclick import events
from afterclick.client.answers import (
    Accepted,
    Batch,
    Categories,
    FoundItems,
    History,
    ItemDetails,
    Items,
    Json,
    Recommendations,
)
from afterclick.errors import BadInput, Unavailable
from afterclick.events import Action

FOR_THE_MOMENT = (429, 500, 502, 503, 504)
T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and the type of its answer."""

    answer: type[T]
    method: str
    path: str
    query: dict[str, Any] | None = None
    body: dict[str, Any] | None = None
    again: bool = True
    """Whether it may be sent twice: what it does, it does once."""

    def read(self, response: httpx2.Response) -> T:
        """The answer. Raises BadInput where the API refuses, Unavailable where it cannot."""
        if response.status_code >= 400:
            kind = Unavailable if response.status_code in FOR_THE_MOMENT else BadInput
            raise kind(_detail(response))
        try:
            return self.answer.model_validate_json(response.content)
        except ValidationError as error:
            raise Unavailable(
                f"{response.url} does not answer as the Afterclick API does: {error}"
            ) from None


def recommendations(
    user_id: str | None,
    n: int | None,
    interests: Sequence[str],
    items: Sequence[str],
    exclude: Sequence[str],
    category: str | None,
    after: str | None,
    more: dict[str, Any],
) -> Call[Recommendations]:
    body = given(
        **more,
        user_id=user_id,
        n=n,
        interests=list(interests),
        items=list(items),
        exclude=list(exclude),
        category=category,
        after=after,
    )
    return Call(Recommendations, "POST", "/recommendations", body=body)


def batch(user_ids: Sequence[str], n: int | None) -> Call[Batch]:
    return Call(Batch, "POST", "/recommendations/batch", body=given(user_ids=list(user_ids), n=n))


def explain(impression_id: str) -> Call[Recommendations]:
    return Call(Recommendations, "GET", f"/explain/{quote(impression_id, safe='')}")


def similar(item_id: str, n: int | None, by: str | None) -> Call[Items]:
    return Call(Items, "GET", "/similar-items", given(item_id=item_id, n=n, by=by))


def latest(n: int | None, category: str | None) -> Call[Items]:
    return Call(Items, "GET", "/latest", given(n=n, category=category))


def popular(n: int | None, window: str | None, category: str | None) -> Call[Items]:
    return Call(Items, "GET", "/popular", given(n=n, window=window, category=category))


def search(words: str, n: int | None) -> Call[FoundItems]:
    return Call(FoundItems, "GET", "/search", given(q=words, n=n))


def categories() -> Call[Categories]:
    return Call(Categories, "GET", "/categories")


def item(item_id: str) -> Call[ItemDetails]:
    return Call(ItemDetails, "GET", f"/items/{quote(item_id, safe='')}")


def history(user_id: str, n: int | None) -> Call[History]:
    return Call(History, "GET", f"/users/{quote(user_id, safe='')}/history", given(n=n))


def feedback(
    user_id: str | None, item_id: str, action: Action | str, more: dict[str, Any]
) -> Call[Accepted]:
    body = given(user_id=user_id, item_id=item_id, action=str(action), **more)
    body.setdefault("event_id", events.new_id())
    if isinstance(body.get("time"), datetime):
        body["time"] = body["time"].isoformat()
    return Call(Accepted, "POST", "/feedback", body=body)


def get(path: str, query: dict[str, Any]) -> Call[Json]:
    return Call(Json, "GET", path, given(**query))


def post(path: str, body: dict[str, Any]) -> Call[Json]:
    return Call(Json, "POST", path, body=body, again=False)


def given(**values: Any) -> dict[str, Any]:
    """The values that were given: neither None nor empty."""
    return {name: value for name, value in values.items() if value is not None and value != []}


def _detail(response: httpx2.Response) -> str:
    """The one line of a problem+json answer."""
    try:
        body = response.json()
    except ValueError:
        body = None
    detail = (body.get("detail") or body.get("title")) if isinstance(body, dict) else None
    return detail if isinstance(detail, str) else f"the API answered {response.status_code}"

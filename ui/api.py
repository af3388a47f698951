"""The API over REST.

reads   http  GET /recommendations, /popular, /similar-items, /search, /categories, /items/{id},
              /users/{id}/history, /models, /exposure, /requests, /dead-letters, /experiments, /admin/console
writes  http  POST /feedback, /admin/…
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import httpx2
from pydantic import TypeAdapter, ValidationError

from afterclick.errors import BadInput, Unavailable
from ui.api_types import Accepted, HistoryItem, ItemDetails, JsonObject, RankedItem, Recommendations, ShopItem

_RANKED = TypeAdapter(tuple[RankedItem, ...])
_ITEMS = TypeAdapter(tuple[ShopItem, ...])
_HISTORY = TypeAdapter(tuple[HistoryItem, ...])


class Api:
    """Calls the API at `url`. Raises Unavailable where it does not answer, BadInput where it refuses."""

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 5.0) -> None:
        self.url = url.rstrip("/")
        self.headers = {"authorization": f"Bearer {key}"} if key else {}
        """What every call carries, WebSockets too."""
        self._http = httpx2.AsyncClient(base_url=self.url, timeout=timeout_s, headers=self.headers)

    async def recommendations(
        self, user_id: str, n: int, interests: Sequence[str] = (), policy: str | None = None
    ) -> Recommendations:
        """A preview of a user's list, ordered by the policy where one is named: it counts nowhere."""
        query: JsonObject = {"user_id": user_id, "n": n, "interests": list(interests), "preview": True}
        if policy is not None:
            query["policy"] = policy
        return Recommendations.model_validate(await self._get("/recommendations", query))

    async def popular(
        self, n: int, category: str | None = None, window: str | None = None
    ) -> tuple[RankedItem, ...]:
        """What everybody reaches for: all-time, or trending over a half-life (hour, day, month)."""
        given = {"n": n, "category": category, "window": window}
        query = {name: value for name, value in given.items() if value is not None}
        return _RANKED.validate_python((await self._get("/popular", query))["items"])

    async def in_list(self, user_id: str, item_id: str) -> Recommendations:
        """A preview of the user's list with this item alone in it, and the events that moved it."""
        query = {
            "user_id": user_id,
            "n": 1,
            "filters": f"item:{item_id}",
            "preview": True,
            "explain": True,
        }
        return Recommendations.model_validate(await self._get("/recommendations", query))

    async def similar(self, item_id: str, n: int, by: str) -> tuple[RankedItem, ...]:
        """Items described alike (`content`), or chosen by the same people (`bought`)."""
        answer = await self._get("/similar-items", {"item_id": item_id, "n": n, "by": by})
        return _RANKED.validate_python(answer["items"])

    async def search(self, words: str, n: int) -> tuple[ShopItem, ...]:
        """Items whose title, category or id has words that begin like these."""
        return _ITEMS.validate_python((await self._get("/search", {"q": words, "n": n}))["items"])

    async def categories(self) -> tuple[str, ...]:
        """Every category that has items, biggest first."""
        rows = (await self._get("/categories", {}))["categories"]
        return tuple(str(row["category"]) for row in rows)

    async def insight(self, path: str) -> JsonObject:
        """/models, /exposure, /dead-letters, /requests, /experiments or /admin/console, as they come."""
        return await self._get(path, {})

    async def item(self, item_id: str) -> ItemDetails:
        return ItemDetails.model_validate(await self._get(f"/items/{quote(item_id, safe='')}", {}))

    async def history(self, user_id: str) -> tuple[HistoryItem, ...]:
        """The user's interactions, newest first."""
        answer = await self._get(f"/users/{quote(user_id, safe='')}/history", {})
        return _HISTORY.validate_python(answer["events"])

    async def feedback(self, body: JsonObject) -> Accepted:
        """Tell what a user did. Returns once Kafka has it."""
        return Accepted.model_validate(await self._call("POST", "/feedback", json=body))

    async def post(self, path: str, body: JsonObject) -> JsonObject:
        """What an administrator does, under /admin."""
        return await self._call("POST", path, json=body)

    async def close(self) -> None:
        await self._http.aclose()

    async def _get(self, path: str, query: JsonObject) -> JsonObject:
        return await self._call("GET", path, params=query)

    async def _call(self, method: str, path: str, **request: Any) -> JsonObject:
        try:
            response = await self._http.request(method, path, **request)
        except httpx2.HTTPError as error:
            raise Unavailable(
                f"no answer from the API at {self.url}: {error or type(error).__name__}"
            ) from None
        if response.status_code >= 500:
            raise Unavailable(_problem(response))
        if response.status_code >= 400:
            raise BadInput(_problem(response))
        try:
            answer: JsonObject = response.json()
        except (ValueError, ValidationError):
            raise Unavailable(f"{self.url}{path} answered no JSON: is this the Afterclick API?") from None
        return answer


def _problem(response: httpx2.Response) -> str:
    """The one line in a problem+json answer."""
    try:
        body = response.json()
    except ValueError:
        return f"the API answered {response.status_code}"
    detail = body.get("detail") or body.get("title") if isinstance(body, dict) else None
    return detail if isinstance(detail, str) else f"the API answered {response.status_code}"

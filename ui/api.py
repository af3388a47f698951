"""The API as the pages ask it: the typed client, with previews that count nowhere.

reads   http  GET /popular, /similar-items, /search, /categories, /items/{id}, /users/{id}/history, /models,
              /exposure, /requests, /dead-letters, /experiments; POST /recommendations
writes  http  POST /feedback
"""

from __future__ import annotations

from collections.abc import Sequence

from afterclick.api import Recommendations
from afterclick.io.client import AsyncClient


class Api(AsyncClient):
    """Calls the API once: a page says that the API is away, and asks again with the next refresh."""

    def __init__(self, url: str, key: str | None = None) -> None:
        super().__init__(url, key, attempts=1)

    async def preview(
        self, user_id: str, n: int, interests: Sequence[str] = (), policy: str | None = None
    ) -> Recommendations:
        """A user's list, ordered by the policy where one is named."""
        return await self.recommendations(
            user_id, n, interests=interests, policy=policy, preview=True
        )

    async def in_list(self, user_id: str, item_id: str) -> Recommendations:
        """The user's list with this item alone in it, and the events that moved it."""
        return await self.recommendations(
            user_id, 1, filters=[f"item:{item_id}"], preview=True, explain=True
        )

"""A typed client of the API: `Client` for threads, `AsyncClient` for the event loop.

Needs the package httpx2 (in the extras `ingest` and `ui`). What fails for the moment is sent again, feedback
under the same event id, so that it takes effect once.
"""

from afterclick.client.answers import (
    Accepted,
    Arm,
    Batch,
    Categories,
    CategoryRow,
    Cause,
    FoundItems,
    History,
    HistoryRow,
    ItemDetails,
    Items,
    JsonObject,
    Moved,
    PushedList,
    RankedItem,
    Recommendations,
    ShopItem,
)
from afterclick.client.clients import AsyncClient, Client

__all__ = [
    "Accepted",
    "Arm",
    "AsyncClient",
    "Batch",
    "Categories",
    "CategoryRow",
    "Cause",
    "Client",
    "FoundItems",
    "History",
    "HistoryRow",
    "ItemDetails",
    "Items",
    "JsonObject",
    "Moved",
    "PushedList",
    "RankedItem",
    "Recommendations",
    "ShopItem",
]

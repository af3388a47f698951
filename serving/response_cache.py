"""Lists just made: for the next request of the same user, and for explaining them later.

A new event of the user, another model and other rules take effect in the next list. Other users'
events may reach a cached personalised list `cache_ttl_s` later, and changes of the catalogue
`CATALOGUE_TTL_S` later. Lists of other tiers are cached for one snapshot only.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass, replace
from sys import getsizeof
from typing import Any

from cachetools import FIFOCache

from afterclick.api import Tier
from afterclick.arrays import Json
from afterclick.events import Context
from serving.request import RecommendationRequest
from serving.state.history import Rows
from serving.state.snapshot import ActiveRules, ServingSnapshot

CATALOGUE_TTL_S = 5.0
MAX_LISTS = 8192
MAX_RESPONSE_BYTES = 128 * 2**20
MAX_IMPRESSION_BYTES = 32 * 2**20
MAX_UNSEEN = 8
"""Pushed lists of a connection that may still be reported as seen: the newest ones."""
MAX_UNSEEN_BYTES = 64 * 2**10
"""Of a connection, or one list that is larger."""
_LIST_BYTES = 1500
"""The size of a list or of its request without the texts in them."""


@dataclass(frozen=True, slots=True)
class RenderedList:
    """A list as it is sent."""

    source: Tier
    items: bytes
    """The items, as JSON."""
    impression_rows: bytes
    """The rows of its impression, as JSON: item, score, source; the propensity with exploration."""
    count: int
    next: str | None = None
    """The cursor of the next page, if requested and if there is one."""
    reduced: bool = False
    """Ranked from fewer candidates under load."""

    @property
    def size_bytes(self) -> int:
        """Approximate size in memory."""
        following = len(self.next or "")
        return len(self.items) + len(self.impression_rows) + following + _LIST_BYTES


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One response: its JSON for orjson, and the list in it."""

    body: dict[str, Any]
    rendered: RenderedList
    policy: str
    """The label of the options, as impressions record them."""
    cached: bool = False
    """Whether the list was made for an earlier request."""
    context: Context | None = None
    """Where the list is shown."""

    @property
    def size_bytes(self) -> int:
        """Approximate size in memory."""
        return self.rendered.size_bytes + _texts_bytes(self.body.values())

    def without_items(self) -> Recommendation:
        """What is needed to count the list as shown."""
        body = {name: value for name, value in self.body.items() if name not in ("items", "next")}
        return replace(self, body=body, rendered=replace(self.rendered, items=b"", next=None))


def keep_unseen(unseen: OrderedDict[str, Recommendation], sent: Recommendation) -> None:
    """Add a list that may be reported as seen. Drops the oldest ones beyond the limits."""
    unseen[sent.body["impression_id"]] = sent.without_items()
    size_bytes = sum(kept.size_bytes for kept in unseen.values())
    while len(unseen) > 1 and (len(unseen) > MAX_UNSEEN or size_bytes > MAX_UNSEEN_BYTES):
        size_bytes -= unseen.popitem(last=False)[1].size_bytes


class ImpressionCache:
    """The newest responses by impression id: what was shown, and why."""

    def __init__(self, max_bytes: int = MAX_IMPRESSION_BYTES) -> None:
        self._responses: FIFOCache[str, Recommendation] = FIFOCache(
            max_bytes, getsizeof=lambda response: response.size_bytes
        )

    def put(self, response: Recommendation) -> None:
        self._responses[response.body["impression_id"]] = response

    def forget(self, user_ids: Container[str]) -> None:
        """Drop the responses to these users."""
        for impression_id, response in list(self._responses.items()):
            if response.body["user_id"] in user_ids:
                del self._responses[impression_id]

    def get(self, impression_id: str) -> dict[str, Any] | None:
        """The response, or None if it is no longer cached."""
        response = self._responses.get(impression_id)
        return response.body if response else None


def first_known(responses: Sequence[Json | None]) -> Json | None:
    """The response among those of several processes, only one of which has it."""
    return next((response for response in responses if response is not None), None)


@dataclass(frozen=True, slots=True)
class _CachedList:
    rows: Rows
    generation: int
    """Of the snapshot; the snapshot itself would be kept alive with all its arrays."""
    model: str
    rules: ActiveRules
    catalogue: int
    made: float
    rendered: RenderedList
    size_bytes: int
    """Approximate size in memory, with its request and history."""

    def is_fresh(self, rows: Rows, snapshot: ServingSnapshot, age_s: float, ttl_s: float) -> bool:
        if self.rows != rows or self.rules is not snapshot.rules:
            return False
        if self.generation == snapshot.generation:
            return True
        personal = self.rendered.source is Tier.PERSONALISED
        if not personal or self.model != snapshot.loaded.version:
            return False
        same = self.catalogue == snapshot.catalogue_version
        return age_s < (ttl_s if same else min(ttl_s, CATALOGUE_TTL_S))


class ResponseCache:
    """The lists of the last seconds, bounded in number and in bytes with their requests.

    Pages after the first are not cached: no other request has the same items before it.
    """

    def __init__(
        self,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
        max_bytes: int = MAX_RESPONSE_BYTES,
        max_lists: int = MAX_LISTS,
    ) -> None:
        smallest = max_bytes // max_lists  # bounds the number: no list counts less
        self._ttl_s, self._clock = ttl_s, clock
        self._entries: FIFOCache[RecommendationRequest, _CachedList] = FIFOCache(
            max_bytes, getsizeof=lambda entry: max(entry.size_bytes, smallest)
        )

    def get(
        self,
        request: RecommendationRequest,
        rows: Rows,
        snapshot: ServingSnapshot,
        reduced: bool = False,
    ) -> RenderedList | None:
        """The list made for the same request, history and model, if it is fresh enough.

        A reduced list is reused only while load is being shed (`reduced`).
        """
        if request.page.shown:
            return None
        try:
            entry = self._entries[_key(request, rows)]  # `get` would hash the request twice
        except KeyError:
            return None
        if not entry.is_fresh(rows, snapshot, self._clock() - entry.made, self._ttl_s):
            return None
        return entry.rendered if reduced or not entry.rendered.reduced else None

    def put(
        self,
        request: RecommendationRequest,
        rows: Rows,
        snapshot: ServingSnapshot,
        rendered: RenderedList,
    ) -> None:
        if request.page.shown:
            return
        key = _key(request, rows)
        self._entries.pop(key, None)  # the newest list is the last to be evicted
        version, rules = snapshot.loaded.version, snapshot.rules
        self._entries[key] = _CachedList(
            rows,
            snapshot.generation,
            version,
            rules,
            snapshot.catalogue_version,
            self._clock(),
            rendered,
            rendered.size_bytes + _request_bytes(key) + _texts_bytes(rows),
        )

    def forget(self, user_ids: Container[str]) -> None:
        """Drop the lists of these users."""
        for request in list(self._entries):
            if request.user_id in user_ids:
                del self._entries[request]

    @property
    def size_bytes(self) -> int:
        """Approximate size in memory of all lists and their requests."""
        return int(self._entries.currsize)


def _request_bytes(request: RecommendationRequest) -> int:
    groups = (request.interests, request.items, request.exclude, request.filters)
    named = (request.user_id, request.category)
    return _LIST_BYTES + sum(map(_texts_bytes, groups)) + _texts_bytes(named)


def _texts_bytes(values: Collection[object]) -> int:
    """The size of a collection of texts."""
    return getsizeof(values) + sum(map(getsizeof, values))


def _key(request: RecommendationRequest, rows: Rows) -> RecommendationRequest:
    """Users without history share a list; `after` and `preview` do not change it."""
    if rows and request.after is None and not request.preview:
        return request
    user_id = request.user_id if rows else ""
    return replace(request, user_id=user_id, after=None, preview=False)

"""Lists that were just made: the same user with the same history need not be ranked again at once.

What the user does changes the history, and so takes effect in the very next list; so do another model and
other rules. What others do, the trends, may come as late in a personalised list as the settings say
(`serving.cache_ttl_s`), what changes in the catalogue `CATALOGUE_S`. Other lists are kept for one snapshot only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import orjson

from afterclick.api import Tier
from serving.ranking.options import FIRST_PAGE, PLAIN, Options, Page
from serving.state.history import Rows
from serving.state.log_waiters import Position
from serving.state.snapshot import ActiveRules, ServingSnapshot

CATALOGUE_S = 5.0
ENTRIES = 8192
KEPT_BYTES = 32 * 2**20
REMEMBERED_BYTES = 128 * 2**20
_LIST_BYTES = 1500
"""What a list takes beside its items."""


@dataclass(frozen=True)
class RecommendationRequest:
    """What one request wants."""

    user_id: str
    """Empty for a visitor who is not known."""
    n: int
    interests: tuple[str, ...] = ()
    after: Position | None = None
    items: tuple[str, ...] = ()
    """What is looked at now, the newest first."""
    exclude: tuple[str, ...] = ()
    category: str | None = None
    explain: bool = False
    filters: tuple[str, ...] = ()
    """Conditions on the catalogue's fields, as `catalogue_query` reads them."""
    options: Options = PLAIN
    settled: bool = False
    """Whether the request names its policy, so that no experiment decides."""
    page: Page = FIRST_PAGE
    preview: bool = False
    """Whether nobody is shown the list, so that nothing counts it."""
    patient: bool = False
    """Whether nobody waits for the list, so that it is made in full however busy the server is."""


@dataclass(frozen=True, slots=True)
class RenderedList:
    """A list as it is answered."""

    source: Tier
    items: bytes
    """The JSON of the items."""
    logged: bytes
    """The JSON of its rows in an impression: item, score, source; the propensity where chance had a say."""
    count: int
    next: str | None = None
    """The cursor of the next page, where it was asked for and there is one."""
    reduced: bool = False
    """Whether it was made from fewer candidates, because requests queued up."""

    @property
    def bytes(self) -> int:
        """About what it takes in memory, with what belongs to it."""
        return len(self.items) + len(self.logged) + _LIST_BYTES


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One answer: its JSON as orjson writes it, and the list in it."""

    body: dict[str, Any]
    shown: RenderedList
    policy: str
    """What made it, as impressions name it."""
    remembered: bool = False
    """Whether the list had been made for an earlier request."""


class Kept:
    """The newest lists that went out, up to `KEPT_BYTES`: to ask later what was shown and why."""

    def __init__(self) -> None:
        self._lists: dict[str, Recommendation] = {}
        self._bytes = 0

    def put(self, answer: Recommendation) -> None:
        self._lists[answer.body["impression_id"]] = answer
        self._bytes += answer.shown.bytes
        while self._bytes > KEPT_BYTES:
            oldest = self._lists.pop(next(iter(self._lists)))
            self._bytes -= oldest.shown.bytes

    def place(self, impression_id: str | None, item_id: str) -> int | None:
        """Where an item stood in a list, from 0; None where that is not known any more."""
        answer = self._lists.get(impression_id or "")
        ids = [row["item_id"] for row in orjson.loads(answer.shown.logged)] if answer else []
        return ids.index(item_id) if item_id in ids else None

    def get(self, impression_id: str) -> dict[str, Any] | None:
        """The list as it was answered, or None where it is too long ago."""
        answer = self._lists.get(impression_id)
        return answer.body if answer else None


@dataclass(frozen=True, slots=True)
class _Entry:
    rows: Rows
    snapshot: int
    """The number of the snapshot: a snapshot itself, with all its arrays, would live as long as the list."""
    model: str
    rules: ActiveRules
    catalogue: int
    made: float
    shown: RenderedList

    def holds(self, rows: Rows, snapshot: ServingSnapshot, keep_s: float) -> bool:
        if self.rows != rows or self.rules is not snapshot.rules:
            return False
        if self.snapshot == snapshot.number:
            return True
        if self.shown.source is not Tier.PERSONALISED or self.model != snapshot.loaded.version:
            return False
        same = self.catalogue == snapshot.catalogue_version
        return time.monotonic() - self.made < (keep_s if same else min(keep_s, CATALOGUE_S))


class ResponseCache:
    """The lists of the last seconds, bounded; the oldest goes first."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._entries: dict[RecommendationRequest, _Entry] = {}
        self._bytes = 0

    def get(
        self,
        ask: RecommendationRequest,
        rows: Rows,
        snapshot: ServingSnapshot,
        reduced: bool = False,
    ) -> RenderedList | None:
        """The list made for the same question, history and model, if it is fresh enough.

        One that was made in a hurry is good enough only where this one would be, too (`reduced`).
        """
        entry = self._entries.get(_key(ask, rows))
        if entry is None or not entry.holds(rows, snapshot, self._keep_s):
            return None
        return entry.shown if reduced or not entry.shown.reduced else None

    def put(
        self, ask: RecommendationRequest, rows: Rows, snapshot: ServingSnapshot, shown: RenderedList
    ) -> None:
        key = _key(ask, rows)
        self._forget(key)
        of = (snapshot.number, snapshot.loaded.version, snapshot.rules, snapshot.catalogue_version)
        self._entries[key] = _Entry(rows, *of, time.monotonic(), shown)
        self._bytes += shown.bytes
        while len(self._entries) > ENTRIES or self._bytes > REMEMBERED_BYTES:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: RecommendationRequest) -> None:
        entry = self._entries.pop(key, None)
        self._bytes -= entry.shown.bytes if entry else 0


def _key(ask: RecommendationRequest, rows: Rows) -> RecommendationRequest:
    """Users without history share their list; what was waited for, or looked at, does not matter."""
    if rows and ask.after is None and not ask.preview:
        return ask
    return replace(ask, user_id=ask.user_id if rows else "", after=None, preview=False)

"""What a request for a list may ask for: options, filters, pages and their cursors.

A cursor holds the ids shown so far, compressed, so that any process continues the list after any
restart. A list that changed meanwhile continues as it is now, without the items shown before. A
cursor is neither secret nor a credential: a forged one only leaves items out.
"""

from __future__ import annotations

import binascii
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property

import orjson
from pydantic import TypeAdapter, ValidationError

from afterclick.api import Policy, SamplingPolicy
from afterclick.events import Context, Id
from afterclick.state import HistoryEntry, LogPosition
from afterclick.user_vectors import UserState

CALLER: ContextVar[str] = ContextVar("caller", default="")
"""The caller of the current request: the unit of the rate limit."""
FIRST_CURSOR = "*"
"""The cursor of the first page."""
MAX_SHOWN = 1000
"""Items that a cursor can hold; a list ends there."""
MAX_CURSOR_LENGTH = 32_768
_MAX_BYTES = 200_000
_IDS = TypeAdapter(list[Id])


@dataclass(frozen=True)
class Options:
    """How a list is made; the defaults change nothing."""

    policy: Policy = Policy.BLEND
    explore: float = 0.0
    """The probability that a rank of the list explores."""
    sampling: SamplingPolicy = SamplingPolicy.UNIFORM
    diversity: float = 0.0
    """0 to 1: the penalty for similarity to an item ranked above, in units of the range of the
    scores."""
    weights: tuple[tuple[str, float], ...] = ()
    """Factors for the contributions to the score."""
    model: str | None = None
    """The model version to use; default: the one that serves."""

    @cached_property
    def label(self) -> str:
        """The options as impressions record them, as in `blend explore=0.1/uniform`."""
        words = [str(self.policy)]
        if self.explore:
            words.append(f"explore={self.explore:g}/{self.sampling}")
        if self.diversity:
            words.append(f"diversity={self.diversity:g}")
        if self.model:
            words.append(f"model={self.model}")
        words += [f"{part}*{weight:g}" for part, weight in self.weights]
        return " ".join(words)


PLAIN = Options()


@dataclass(frozen=True)
class Page:
    """Which part of the list."""

    offset: int = 0
    """Ranks to skip."""
    shown: tuple[str, ...] = ()
    """Items of the pages before, from the cursor."""
    paginate: bool = False
    """Whether the response carries the cursor of the next page."""

    @property
    def start(self) -> int:
        """The first rank of this page, from 0."""
        return self.offset + len(self.shown)


FIRST_PAGE = Page()


@dataclass(frozen=True)
class RecommendationRequest:
    """One request for a list."""

    user_id: str
    """Empty for an anonymous visitor."""
    n: int
    interests: tuple[str, ...] = ()
    after: LogPosition | None = None
    """Wait until this event is in the state."""
    items: tuple[str, ...] = ()
    """Items looked at now, newest first."""
    exclude: tuple[str, ...] = ()
    category: str | None = None
    explain: bool = False
    filters: tuple[str, ...] = ()
    """Conditions on catalogue fields, in the syntax of `catalogue_query`."""
    options: Options = PLAIN
    policy_pinned: bool = False
    """The request names its policy, so no experiment applies."""
    page: Page = FIRST_PAGE
    preview: bool = False
    """The list is not shown to a user and not counted."""
    context: Context | None = None
    """Where the list is shown."""
    never_shed: bool = False
    """Rank all candidates even under load."""


@dataclass(frozen=True, eq=False)
class RequestUser:
    """The user of one request: the effective history and what ranking reads from it."""

    history: Sequence[HistoryEntry]
    state: UserState
    is_known: bool
    """Has an id of its own and a stored history."""


def encode_cursor(shown: Sequence[str]) -> str:
    """The cursor after these items."""
    return urlsafe_b64encode(zlib.compress(orjson.dumps(shown), 6)).rstrip(b"=").decode()


def decode_cursor(cursor: str) -> tuple[str, ...]:
    """The items shown so far. Raises ValueError for a malformed cursor."""
    if cursor == FIRST_CURSOR:
        return ()
    try:
        packed = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        stream = zlib.decompressobj()
        raw = stream.decompress(packed, _MAX_BYTES)
        if not stream.eof:
            raise ValueError
        shown = _IDS.validate_json(raw)
    except (ValueError, binascii.Error, zlib.error, ValidationError, UnicodeEncodeError):
        raise ValueError(
            f"is not a cursor: start with {FIRST_CURSOR}, continue with `next` of the response"
        ) from None
    if len(shown) > MAX_SHOWN:
        raise ValueError(f"holds more than {MAX_SHOWN} items")
    return tuple(shown)


def cursor_after(shown_before: Sequence[str], page: Sequence[str], n: int) -> str | None:
    """The cursor of the page after this one of n; None at the end of the list."""
    shown = (*shown_before, *page)
    if len(page) < n or len(shown) > MAX_SHOWN:
        return None
    cursor = encode_cursor(shown)
    return cursor if len(cursor) <= MAX_CURSOR_LENGTH else None

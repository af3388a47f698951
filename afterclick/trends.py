"""Trends by forward decay: older events weigh less, and stored sums are never updated for age.

Forward decay (Cormode, Shkapenyuk, Srivastava, Xu: Forward decay, ICDE 2009) with each item's own
newest event time as its landmark, so that nothing overflows and no landmark is ever re-based. For
half-life h an item holds (t, s): s = Σ w_i · 2^(−(t − t_i)/h), t = max t_i. Adding an event in any
order gives the same state up to rounding (relative 1e-9), and the value at any later moment is s ·
2^(−(now − t)/h).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from afterclick.arrays import Float64Array, Int64Array, IntArray
from afterclick.state import StarCounts, StateChange, is_interaction

HOUR_MS = 3_600_000.0
DAY_MS = 24 * HOUR_MS
HALF_LIVES_MS: dict[str, float] = {
    "hour": HOUR_MS,
    "day": DAY_MS,
    "three_days": 3 * DAY_MS,
    "week": 7 * DAY_MS,
    "month": 30 * DAY_MS,
    "quarter": 90 * DAY_MS,
}
TREND_MIX = np.array([0.0, 0.0, 1 / 3, 1 / 7, 1 / 30, 0.0])
"""Weight of each half-life in trend scores: the shares of three days, a week and a month, per day.

Chosen on Electronics from January to May 2014: within noise of the best single half-life in each
month."""
_HALF_LIVES = np.array(list(HALF_LIVES_MS.values()))
_FORMAT = struct.Struct(f"<{1 + 2 * len(HALF_LIVES_MS)}d")
PACKED_BYTES = _FORMAT.size
"""Bytes of a trend in Redis."""


@dataclass(frozen=True, slots=True)
class Trend:
    """The decayed sums of one item as of `time_ms`, the time of its newest event."""

    time_ms: float
    sums: tuple[float, ...]
    """(H,) of all votes, in the order of HALF_LIVES_MS."""
    established: tuple[float, ...] = (0.0,) * len(HALF_LIVES_MS)
    """(H,) of the votes of established users."""

    def pack(self) -> bytes:
        """The value in Redis: little-endian doubles, `time_ms`, then the sums."""
        return _FORMAT.pack(self.time_ms, *self.sums, *self.established)

    @classmethod
    def unpack(cls, raw: bytes) -> Trend:
        time_ms, *sums = _FORMAT.unpack(raw)
        return cls(time_ms, tuple(sums[: len(HALF_LIVES_MS)]), tuple(sums[len(HALF_LIVES_MS) :]))

    def add(self, time_ms: float, weight: float, established: float = 0.0) -> Trend:
        """The trend with one more vote; the same arithmetic as streaming/functions.lua."""
        newest = max(self.time_ms, time_ms)
        old, new = _decay(newest - self.time_ms), _decay(newest - time_ms)
        sums = np.array(self.sums) * old + new * weight
        by_established = np.array(self.established) * old + new * established
        return Trend(newest, tuple(sums.tolist()), tuple(by_established.tolist()))


def _decay(elapsed_ms: float | Float64Array) -> Float64Array:
    return np.asarray(np.exp2(-elapsed_ms / _HALF_LIVES))


class TrendTable:
    """Trends and exact counts of the whole catalogue in arrays; grows as items appear."""

    def __init__(self, capacity: int = 1024) -> None:
        self._rows: dict[str, int] = {}
        self._ids: list[str] = []
        self._time = np.zeros(capacity)
        # [:, 0] of all votes, [:, 1] of established users
        self._sums = np.zeros((capacity, 2, len(HALF_LIVES_MS)))
        self._counts = np.zeros(capacity, np.int64)
        self._stars = np.zeros((capacity, len(StarCounts._fields)), np.int32)
        self.newest_ms = 0.0

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> list[str]:
        """Item id of each row; do not modify."""
        return self._ids

    @property
    def counts(self) -> Int64Array:
        """(len,) interactions, all time; a view."""
        return self._counts[: len(self)]

    @property
    def stars(self) -> IntArray:
        """(len, 4) counts of reviews with stars, as in `StarCounts`; a view."""
        return self._stars[: len(self)]

    def row(self, item_id: str) -> int:
        """The row of an item; adds one for a new item."""
        row = self._rows.get(item_id)
        if row is None:
            row = self._rows[item_id] = len(self._ids)
            self._ids.append(item_id)
            if row >= len(self._time):
                self._grow()
        return row

    def find(self, item_id: str) -> int | None:
        """The row of an item, or None."""
        return self._rows.get(item_id)

    def apply(self, change: StateChange) -> None:
        """Apply the effects of an event."""
        weight, stars = change.weight, change.stars or 0
        self.correct(change.item_id, change.time_ms, weight, weight if change.established else 0.0)
        row = self._rows[change.item_id]
        self._counts[row] += is_interaction(weight, stars)
        if stars:
            self._stars[row] += StarCounts(1, stars, weight > 0, weight <= 0)
        for item_id, time_ms, change_of_weight, established, replaced in change.compensations:
            self.correct(item_id, time_ms, change_of_weight, established)
            if replaced:  # of a positive one, the weight is retracted
                row = self._rows[item_id]
                self._stars[row] -= StarCounts(1, replaced, change_of_weight < 0)

    def add(self, item_id: str, time_ms: float, weight: float, established: float = 0.0) -> None:
        """Add one event to sums and counts; `established`: its weight, or 0 for a new account."""
        self.correct(item_id, time_ms, weight, established)
        self._counts[self._rows[item_id]] += weight > 0

    def correct(self, item_id: str, time_ms: float, weight: float, established: float) -> None:
        """Add to the sums only, as a compensation does."""
        row = self.row(item_id)
        newest = max(self._time[row], time_ms)
        self._sums[row] *= _decay(newest - self._time[row])
        self._sums[row] += np.outer((weight, established), _decay(newest - time_ms))
        self._time[row] = newest
        self.newest_ms = max(self.newest_ms, time_ms)

    def merge_many(
        self,
        item_ids: Sequence[str],
        times_ms: Float64Array,
        sums: Float64Array,
        counts: Int64Array,
        stars: IntArray | None = None,
    ) -> None:
        """Add one partition's trends of n distinct items; `sums` (n, 2 · H) as in a Trend, `stars`
        (n, 4) as in `StarCounts`."""
        if not len(item_ids):
            return
        rows = np.fromiter((self.row(item) for item in item_ids), np.int64, len(item_ids))
        newest = np.maximum(self._time[rows], times_ms)
        old = _decay((newest - self._time[rows])[:, None, None])
        new = sums.reshape(-1, 2, len(HALF_LIVES_MS)) * _decay((newest - times_ms)[:, None, None])
        self._sums[rows] = self._sums[rows] * old + new
        self._time[rows] = newest
        self._counts[rows] += counts
        if stars is not None:
            self._stars[rows] += stars
        self.newest_ms = max(self.newest_ms, float(times_ms.max()))

    def values(self, now_ms: float) -> Float64Array:
        """(len, H) decayed sums of all votes as of `now_ms`."""
        return self.both(now_ms)[0]

    def both(self, now_ms: float) -> tuple[Float64Array, Float64Array]:
        """`values`, and (len, H) the same for the votes of established users."""
        age = np.maximum(now_ms - self._time[: len(self)], 0.0)
        decay = np.exp2(-age[:, None] / _HALF_LIVES)
        return self._sums[: len(self), 0] * decay, self._sums[: len(self), 1] * decay

    def _grow(self) -> None:
        extra = len(self._time)
        self._time = np.concatenate([self._time, np.zeros(extra)])
        self._sums = np.concatenate([self._sums, np.zeros((extra, *self._sums.shape[1:]))])
        self._counts = np.concatenate([self._counts, np.zeros(extra, np.int64)])
        self._stars = np.concatenate([self._stars, np.zeros_like(self._stars)])

"""What is true of an item for everybody just now: that it trends, that it is new."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from afterclick.api import Badge
from afterclick.trends import DAY_MS, HALF_LIVES_MS

LEAST = 2.0
"""Decayed weight of the last hour that an item needs to trend: one event makes no trend."""
TIMES = 3.0
"""How many times its rate of the month the rate of the hour has to be."""
AT_MOST = 12
"""Items that trend at the same time."""
NEW_MS = 30 * DAY_MS
_HOUR, _MONTH = (list(HALF_LIVES_MS).index(name) for name in ("hour", "month"))

Badges = dict[int, tuple[Badge, ...]]


def badges(
    values: NDArray[np.float64], first_seen_ms: NDArray[np.float64], now_ms: float
) -> Badges:
    """Badges by item index, from decayed sums (m, H) as of now and the (m,) times of first interactions.

    A steady rate r leaves a decayed sum of r · half-life / ln 2, so sums over half-lives compare as rates.
    """
    hour, month = (
        values[:, at] / HALF_LIVES_MS[name] for at, name in ((_HOUR, "hour"), (_MONTH, "month"))
    )
    trends = np.flatnonzero((values[:, _HOUR] >= LEAST) & (hour >= TIMES * month))
    trends = trends[np.argsort(-values[trends, _HOUR], kind="stable")][:AT_MOST]
    with np.errstate(invalid="ignore"):
        new = np.flatnonzero(first_seen_ms >= now_ms - NEW_MS)
    found: Badges = dict.fromkeys(trends.tolist(), (Badge.TRENDING,))
    return found | {item: (*found.get(item, ()), Badge.NEW) for item in new.tolist()}

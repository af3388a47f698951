"""How often a user was shown an item within a day, to show it no more than that.

Counted are the lists that this process sent and the user saw: other workers and replicas count
their own. Items that the user acted on are not shown again anyway.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Container, Sequence
from typing import Final

from afterclick.trends import DAY_MS

MAX_LISTS: Final = 20_000
"""Lists in memory, of all users; those of the users who waited longest are dropped first."""
MAX_USER_LISTS: Final = 200
"""Lists of one user, the newest."""
_Lists = deque[tuple[float, tuple[str, ...]]]


class FrequencyCap:
    """Items that a user was shown `showings` times within a day; 0: no limit."""

    def __init__(
        self, showings: int, lists: int = MAX_LISTS, user_lists: int = MAX_USER_LISTS
    ) -> None:
        self._showings, self._max_lists, self._max_user_lists = showings, lists, user_lists
        self._shown: OrderedDict[str, _Lists] = OrderedDict()
        self._count = 0

    def __bool__(self) -> bool:
        return self._showings > 0

    def __len__(self) -> int:
        """Lists in memory."""
        return self._count

    def put(self, user_id: str, item_ids: Sequence[str], now_ms: float) -> None:
        """Count a list that a user has seen."""
        lists = self._shown.pop(user_id, None) or deque()
        self._shown[user_id] = lists
        lists.append((now_ms, tuple(item_ids)))
        self._count += 1
        if len(lists) > self._max_user_lists:
            lists.popleft()
            self._count -= 1
        while self._count > self._max_lists:
            self._count -= len(self._shown.popitem(last=False)[1])

    def reached(self, user_id: str, now_ms: float) -> tuple[str, ...]:
        """The items not to show now, in the order of their ids."""
        lists = self._shown.get(user_id)
        if not lists:
            return ()
        while lists and lists[0][0] <= now_ms - DAY_MS:
            lists.popleft()
            self._count -= 1
        counts = Counter(item_id for _, item_ids in lists for item_id in item_ids)
        return tuple(sorted(item_id for item_id, n in counts.items() if n >= self._showings))

    def forget(self, user_ids: Container[str]) -> None:
        """Drop the lists of these users."""
        for user_id in [name for name in self._shown if name in user_ids]:
            self._count -= len(self._shown.pop(user_id))

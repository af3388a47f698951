"""How often a user was shown an item within a day: a feature of the ranker, and a cap.

Serving counts the lists that its process sent and the user saw: other workers and replicas count
their own. Training counts the impressions on the topic.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Container, Mapping, Sequence
from typing import Final

from afterclick.trends import DAY_MS

MAX_LISTS: Final = 20_000
"""Lists in memory, of all users; those of the users who waited longest are dropped first."""
MAX_USER_LISTS: Final = 200
"""Lists of one user, the newest."""
_NOTHING: Final[Mapping[str, int]] = {}


class _UserLists:
    """The lists of one user, oldest first, and how often they have each item."""

    def __init__(self) -> None:
        self.lists: deque[tuple[float, tuple[str, ...]]] = deque()
        self.counts: Counter[str] = Counter()

    def put(self, item_ids: Sequence[str], now_ms: float) -> None:
        self.lists.append((now_ms, tuple(item_ids)))
        self.counts.update(item_ids)

    def drop_oldest(self) -> None:
        for item_id in self.lists.popleft()[1]:
            self.counts[item_id] -= 1
            if not self.counts[item_id]:
                del self.counts[item_id]


class ShownItems:
    """The items that users were shown within a day."""

    def __init__(self, lists: int = MAX_LISTS, user_lists: int = MAX_USER_LISTS) -> None:
        self._max_lists, self._max_user_lists = lists, user_lists
        self._users: OrderedDict[str, _UserLists] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        """Lists in memory."""
        return self._count

    def put(self, user_id: str, item_ids: Sequence[str], now_ms: float) -> None:
        """Count a list that a user has seen."""
        user = self._users.setdefault(user_id, _UserLists())
        self._users.move_to_end(user_id)
        user.put(item_ids, now_ms)
        self._count += 1
        if len(user.lists) > self._max_user_lists:
            self._drop_oldest(user)
        while self._count > self._max_lists:
            self._count -= len(self._users.popitem(last=False)[1].lists)

    def counts(self, user_id: str, now_ms: float) -> Mapping[str, int]:
        """Item id → how often the user was shown it within a day; not to be changed."""
        user = self._users.get(user_id)
        if user is None:
            return _NOTHING
        while user.lists and user.lists[0][0] <= now_ms - DAY_MS:
            self._drop_oldest(user)
        if not user.lists:
            del self._users[user_id]
        return user.counts

    def forget(self, user_ids: Container[str]) -> None:
        """Drop the lists of these users."""
        for user_id in [name for name in self._users if name in user_ids]:
            self._count -= len(self._users.pop(user_id).lists)

    def _drop_oldest(self, user: _UserLists) -> None:
        user.drop_oldest()
        self._count -= 1

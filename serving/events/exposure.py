"""What was shown and what came of it: per source and model, and per place, since this process began.

A list counts as reacted to at its first click, like, basket or purchase that names its impression. The newest
lists are remembered, a bounded number; a reaction to an older one is not counted.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any

from afterclick.events import Action

REMEMBERED = 50_000
_REACTIONS = {Action.CLICK, Action.LIKE, Action.BASKET, Action.PURCHASE}


@dataclass
class Tally:
    """Of one source and model: lists, lists reacted to, items in them, and clicks on items."""

    lists: int = 0
    reacted: int = 0
    items: int = 0
    clicks: int = 0


class Exposure:
    """Lives on the event loop."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._open: OrderedDict[str, Tally] = OrderedDict()
        self._reacted: OrderedDict[str, None] = OrderedDict()
        self._lengths: Counter[int] = Counter()
        self._clicks: Counter[int] = Counter()

    def shown(self, impression_id: str, source: str, model_version: str | None, items: int) -> None:
        """A list of so many items went out."""
        key = (source, model_version or "")
        tally = self._tallies.setdefault(key, Tally())
        tally.lists += 1
        tally.items += items
        self._lengths[items] += 1
        self._open[impression_id] = tally
        _bound(self._open)

    def reacted(self, impression_id: str | None, action: Action, place: int | None = None) -> None:
        """Somebody acted on an item of a list, at a place that counts from 0, where it is known."""
        tally = self._open.get(impression_id or "")
        if tally is None or impression_id is None or action not in _REACTIONS:
            return
        tally.clicks += action is Action.CLICK
        if place is not None and action is Action.CLICK:
            self._clicks[place] += 1
        if impression_id not in self._reacted:
            tally.reacted += 1
            self._reacted[impression_id] = None
            _bound(self._reacted)

    def rows(self) -> list[dict[str, Any]]:
        """A row per source and model, the most shown first."""
        ordered = sorted(self._tallies.items(), key=lambda entry: -entry[1].lists)
        return [
            {"source": source, "model_version": model or None, **vars(tally)}
            for (source, model), tally in ordered
        ]

    def places(self) -> list[dict[str, int]]:
        """A row per place, from 1: items shown there, and clicks on them."""
        longest = max(self._lengths, default=0)
        shown, rows = 0, []
        for place in reversed(range(longest)):
            shown += self._lengths[place + 1]
            rows.append({"place": place + 1, "shown": shown, "clicks": self._clicks[place]})
        return rows[::-1]


def _bound(remembered: OrderedDict[str, Any]) -> None:
    if len(remembered) > REMEMBERED:
        remembered.popitem(last=False)

"""The weight of an event, by its action and stars, as the settings define it.

One definition for the stream, training and serving. A rating (0 to 5) counts as whole stars,
rounded half up, at least one; without a rating a review has the weight of its action. Stars count
only in reviews.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

import orjson

from afterclick.events import Action, InteractionEvent

STARS: Final = (1, 2, 3, 4, 5)
_ACTION_LETTERS: Final = dict(zip(Action, "ABCDEFGHIJKLMNOPQRSTU", strict=False))
_STAR_LETTERS: Final = dict(zip(STARS, "VWXYZ", strict=True))


def stars_of(action: str, rating: float | None) -> int:
    """The stars of an event, 1 to 5; 0: it is no review, or has no rating."""
    if rating is None or action != Action.REVIEW:
        return 0
    return min(max(int(rating + 0.5), 1), 5)


class EventVote(NamedTuple):
    """What an event says about its item."""

    weight: float
    stars: int
    """1 to 5; 0 without."""
    code: str
    """The letter of the vote; '': no vote."""


_NO_VOTE = EventVote(0.0, 0, "")


@dataclass(frozen=True)
class Signals:
    """Weights of events. Picklable."""

    actions: Mapping[Action, float]
    """Weight of each action; of a review without a rating."""
    stars: Mapping[int, float]
    """Weight of a review with 1 to 5 stars."""
    reactions: frozenset[Action] = field(default_factory=frozenset)
    """Actions on a shown item that count as a success of its list."""
    conversions: frozenset[Action] = field(default_factory=frozenset)
    """Actions that experiments count as conversions."""

    def weight(self, action: Action, rating: float | None = None) -> float:
        """Above 0: positive; below 0: negative."""
        if rating is None or action is not Action.REVIEW:
            return self.actions[action]
        return self.stars[stars_of(action, rating)]

    def code(self, action: Action, rating: float | None = None) -> str:
        """The letter of the event's vote: a capital for a positive weight; '': no vote.

        Every review votes, also with weight 0: it replaces the user's earlier review of the item.
        """
        return self._codes[action, stars_of(action, rating)]

    def vote_of(self, event: InteractionEvent) -> EventVote:
        """What an event votes; a copy of another event has no vote."""
        if event.is_copy:
            return _NO_VOTE
        action = event.data.action
        return self._votes[action, stars_of(action, event.data.rating)]

    def encode_weights(self) -> bytes:
        """All weights as JSON, the same bytes for the same weights."""
        stars = {f"{n} stars": self.stars[n] for n in STARS}
        actions = {str(action): weight for action, weight in self.actions.items()}
        return orjson.dumps(actions | stars, option=orjson.OPT_SORT_KEYS)

    @cached_property
    def weight_of_code(self) -> dict[str, float]:
        """Weight by the letter of a vote."""
        weights = {code: self.actions[action] for (action, n), code in self._codes.items() if not n}
        rated = {self._codes[Action.REVIEW, n]: self.stars[n] for n in STARS}
        weights.pop("", None)
        return weights | rated

    @cached_property
    def stars_of_code(self) -> dict[str, int]:
        """Stars by the letter of a vote; 0: not a review with stars."""
        rated = {self._codes[Action.REVIEW, n]: n for n in STARS}
        return dict.fromkeys(self.weight_of_code, 0) | rated

    @cached_property
    def _votes(self) -> dict[tuple[Action, int], EventVote]:
        return {
            (action, n): EventVote(self.stars[n] if n else self.actions[action], n, code)
            for (action, n), code in self._codes.items()
        }

    @cached_property
    def _codes(self) -> dict[tuple[Action, int], str]:
        codes = {(a, 0): _cased(_ACTION_LETTERS[a], weight) for a, weight in self.actions.items()}
        review = self.actions[Action.REVIEW]
        codes[Action.REVIEW, 0] = _cased(_ACTION_LETTERS[Action.REVIEW], review or -0.5)
        rated = {(Action.REVIEW, n): _cased(_STAR_LETTERS[n], self.stars[n] or -0.5) for n in STARS}
        return codes | rated


def _cased(letter: str, weight: float) -> str:
    return letter if weight > 0 else letter.lower() if weight else ""

"""Simulated users with hidden preferences and their click model. Pure: no clock, no network.

The complete model:

- A user prefers one to three categories, each with a strength drawn from U(2, 4). The affinity of
  an item is the highest strength among its categories, otherwise 0. Each item has a quality ~ N(0,
  0.5) common to all users, and each user-item pair a noise ~ N(0, 0.4). Both are derived from
  hashes of the seed.
- Position-based examination: P(look | rank k) = k^-0.35, k = 1, 2, …
- P(click | look) = sigmoid(−4 + affinity + quality + noise): about 2 % without affinity, about 30
  % in a preferred category. An item is clicked at most once.
- After a click: purchase with P = 0.12 · sigmoid(affinity), otherwise like with P = 0.35 ·
  sigmoid(affinity).
- An examined item that is not clicked and has affinity 0 is skipped with P = 0.03.
- Drift: between two visits, with the given probability, one preferred category is replaced.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

from afterclick.events import Action

LOOK_DECAY = 0.35
CLICK_BIAS = -4.0
QUALITY_SD = 0.5
NOISE_SD = 0.4
BUY = 0.12
LIKE = 0.35
SKIP = 0.03
HOT = 3.0
_NORMAL = NormalDist()


@dataclass(frozen=True)
class SeenItem:
    """An item of a list with its categories."""

    item_id: str
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class SimulatedAction:
    """An action of a simulated user on an item."""

    item_id: str
    action: Action


@dataclass(frozen=True)
class Visit:
    """Outcome of viewing one list. `expected_clicks` is the model's expectation before sampling."""

    actions: tuple[SimulatedAction, ...]
    shown: int
    clicks: int
    expected_clicks: float


@dataclass(frozen=True)
class GroundTruth:
    """Hidden values: the seed of qualities and noise, and currently trending items."""

    seed: int
    hot: frozenset[str] = frozenset()

    def quality(self, item_id: str) -> float:
        """Quality of the item, common to all users."""
        return QUALITY_SD * self._gauss("quality", item_id) + (HOT if item_id in self.hot else 0.0)

    def noise(self, user_id: str, item_id: str) -> float:
        """Preference of one user for one item."""
        return NOISE_SD * self._gauss("noise", user_id, item_id)

    def _gauss(self, *parts: str) -> float:
        digest = hashlib.blake2b(
            "\0".join((str(self.seed), *parts)).encode(), digest_size=8
        ).digest()
        return _NORMAL.inv_cdf((int.from_bytes(digest) + 1) / (2**64 + 1))


@dataclass
class SimulatedUser:
    """A user: id, preferences that may drift, and clicked items."""

    user_id: str
    tastes: dict[str, float]
    rng: random.Random
    clicked: set[str] = field(default_factory=set)

    @classmethod
    def create(cls, user_id: str, categories: Sequence[str], seed: int) -> SimulatedUser:
        """Create a user with one to three preferred categories."""
        rng = random.Random(f"{seed}/{user_id}")
        liked = rng.sample(categories, k=min(rng.randint(1, 3), len(categories)))
        return cls(user_id, {name: rng.uniform(2.0, 4.0) for name in liked}, rng)

    def affinity(self, item: SeenItem) -> float:
        return max((self.tastes.get(name, 0.0) for name in item.categories), default=0.0)

    def click_probability(self, item: SeenItem, truth: GroundTruth) -> float:
        """P(click | look)."""
        if item.item_id in self.clicked:
            return 0.0
        appeal = (
            self.affinity(item)
            + truth.quality(item.item_id)
            + truth.noise(self.user_id, item.item_id)
        )
        return sigmoid(CLICK_BIAS + appeal)

    def visit(self, items: Sequence[SeenItem], truth: GroundTruth) -> Visit:
        """View a list from the top and act."""
        actions: list[SimulatedAction] = []
        expected = sum(
            look_probability(place) * self.click_probability(item, truth)
            for place, item in enumerate(items, start=1)
        )
        for place, item in enumerate(items, start=1):
            if self.rng.random() < look_probability(place):
                actions += self._react(item, truth)
        clicks = sum(action.action is Action.CLICK for action in actions)
        return Visit(tuple(actions), len(items), clicks, expected)

    def drift(self, categories: Sequence[str]) -> None:
        """Replace one preferred category."""
        others = [name for name in categories if name not in self.tastes]
        if others and self.tastes:
            strength = self.tastes.pop(self.rng.choice(sorted(self.tastes)))
            self.tastes[self.rng.choice(others)] = strength

    def _react(self, item: SeenItem, truth: GroundTruth) -> list[SimulatedAction]:
        affinity = self.affinity(item)
        if self.rng.random() < self.click_probability(item, truth):
            self.clicked.add(item.item_id)
            then = self._after_click(affinity)
            return [
                SimulatedAction(item.item_id, Action.CLICK),
                *([SimulatedAction(item.item_id, then)] if then else []),
            ]
        if affinity == 0.0 and item.item_id not in self.clicked and self.rng.random() < SKIP:
            return [SimulatedAction(item.item_id, Action.SKIP)]
        return []

    def _after_click(self, affinity: float) -> Action | None:
        warmth = sigmoid(affinity)
        if self.rng.random() < BUY * warmth:
            return Action.PURCHASE
        return Action.LIKE if self.rng.random() < LIKE * warmth else None


def look_probability(place: int) -> float:
    """P(look) at a rank, from 1."""
    return float(place**-LOOK_DECAY)


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))

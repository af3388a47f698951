"""Simulated users with hidden preferences and their click model. Pure: no clock, no network.

The complete model:

- A user prefers one to three categories, each with a strength drawn from U(2, 4). The affinity of
  an item is the highest strength among its categories, otherwise 0.
- A user has latent factors of length 1 in a random direction. The latent liking of an item is 2
  times their inner product with the item's factors (`LatentTaste`), about N(0, 2) over
  items. No category, brand or title shows it.
- Each item has a quality ~ N(0, 0.5) common to all users, and each user-item pair a noise ~ N(0,
  0.4). Both are derived from hashes of the seed.
- Position-based examination: P(look | rank k) = k^-0.35, k = 1, 2, …
- P(click | look) = 0.8^m · sigmoid(−4.5 + affinity + latent + quality + noise), m the number of
  times that the user was shown the item without a click (impression discounting, Lee et al., KDD
  2014): at first about 6 % without affinity, about 30 % in a preferred category.
- A clicked item is not clicked again in the next 10 visits, a bought one in the next 50.
- After a click: purchase with P = 0.12 · sigmoid(affinity + latent), otherwise like with P = 0.35 ·
  sigmoid(affinity + latent).
- An examined item that is not clicked and has affinity 0 is skipped with P = 0.03.
- Drift: between two visits, with the given probability, one preferred category is replaced.

What it can show: that events reach the lists in time, that a list follows a taste which only
co-purchases reveal, that experiments and intervals are right, as the truth is known. Where the
factors are those of the reviews on which the model was trained, it shows whether the model finds
them again from a few clicks.

What it cannot show: how much real shoppers would click or buy. Shoppers follow this model and no
other: tastes do not change with what is shown, nobody compares prices, searches or leaves, and
categories, latent factors and fatigue have the sizes that are written here. A list that changes
often gains from fatigue alone. All lists of a run feed the same trends, so arms are not
independent. A lift measured here is a property of list and click model together and no forecast.

Drawn factors depend on the item id and a seed alone, so they are independent of everything else
that is known about an item. The generated shop uses them (`ingest/generate.py`): its purchases
reflect them, its catalogue does not. For another dataset they can be fitted to its reviews
(`fitted_factors` in `ingest/simulation.py`).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from afterclick.arrays import Float64Array
from afterclick.events import Action

DIMENSIONS = 4
LATENT_STRENGTH = 2.0
"""Standard deviation over items of the latent part of a shopper's liking."""
SHOP_SEED = 7
"""Seed of the factors of generated shops."""
_NORMAL = NormalDist()
Factors = tuple[float, ...]
"""(DIMENSIONS,)"""


def gauss(seed: int, *parts: str) -> float:
    """A standard normal draw that depends on its arguments alone."""
    text = "\0".join((str(seed), *parts))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return _NORMAL.inv_cdf((int.from_bytes(digest) + 1) / (2**64 + 1))


@lru_cache(maxsize=100_000)
def drawn_factors(item_id: str) -> Factors:
    """The factors of an item of a generated shop, N(0, 1) each."""
    return tuple(gauss(SHOP_SEED, "latent", item_id, str(n)) for n in range(DIMENSIONS))


def of_length_one(vector: Float64Array) -> Float64Array:
    """(DIMENSIONS,) a shopper's factors: the direction of a normal draw."""
    length = float((vector**2).sum()) ** 0.5
    return np.asarray(vector / max(length, 1e-12))


@dataclass(frozen=True)
class LatentTaste:
    """The factors of all items, and how much they matter."""

    strength: float = LATENT_STRENGTH
    """Multiplies the inner product with a shopper's factors of length 1; 0 switches it off."""
    fitted: Mapping[str, Factors] | None = field(default=None, repr=False)
    """Fitted factors by item id; items without any have no latent part. None: drawn factors."""

    def liking(self, shopper: Factors, item_id: str) -> float:
        """The latent part of a shopper's liking of an item."""
        item = drawn_factors(item_id) if self.fitted is None else self.fitted.get(item_id, ())
        return self.strength * sum(a * b for a, b in zip(shopper, item, strict=False))


LOOK_DECAY = 0.35
CLICK_BIAS = -4.5
QUALITY_SD = 0.5
NOISE_SD = 0.4
BUY = 0.12
LIKE = 0.35
SKIP = 0.03
HOT = 3.0
FATIGUE = 0.8
"""Factor of the click probability for each time the item was shown without a click."""
REST_VISITS = {Action.CLICK: 10, Action.PURCHASE: 50}
"""Visits after an action in which the item is not clicked again."""


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
    """Hidden values: the seed of qualities and noise, trending items, and latent factors."""

    seed: int
    hot: frozenset[str] = frozenset()
    latent: LatentTaste = field(default_factory=LatentTaste)

    def quality(self, item_id: str) -> float:
        """Quality of the item, common to all users."""
        trending = HOT if item_id in self.hot else 0.0
        return QUALITY_SD * gauss(self.seed, "quality", item_id) + trending

    def noise(self, user_id: str, item_id: str) -> float:
        """Preference of one user for one item."""
        return NOISE_SD * gauss(self.seed, "noise", user_id, item_id)


@dataclass
class SimulatedUser:
    """A user: id, preferences that may drift, and what they have seen and done."""

    user_id: str
    tastes: dict[str, float]
    latent: Factors
    rng: random.Random
    visits: int = 0
    ignored: dict[str, int] = field(default_factory=dict)
    """Item id → times shown without a click."""
    resting: dict[str, int] = field(default_factory=dict)
    """Item id → the visit from which it may be clicked again."""

    @classmethod
    def create(cls, user_id: str, categories: Sequence[str], seed: int) -> SimulatedUser:
        """Create a user with one to three preferred categories."""
        rng = random.Random(f"{seed}/{user_id}")
        liked = rng.sample(categories, k=min(rng.randint(1, 3), len(categories)))
        tastes = {name: rng.uniform(2.0, 4.0) for name in liked}
        latent = of_length_one(np.array([rng.gauss(0, 1) for _ in range(DIMENSIONS)]))
        return cls(user_id, tastes, tuple(latent.tolist()), rng)

    def affinity(self, item: SeenItem) -> float:
        """The liking that the item's categories show."""
        return max((self.tastes.get(name, 0.0) for name in item.categories), default=0.0)

    def liking(self, item: SeenItem, truth: GroundTruth) -> float:
        """The liking by categories and latent factors."""
        return self.affinity(item) + truth.latent.liking(self.latent, item.item_id)

    def click_probability(self, item: SeenItem, truth: GroundTruth) -> float:
        """P(click | look)."""
        item_id = item.item_id
        if self.visits < self.resting.get(item_id, 0):
            return 0.0
        appeal = (
            self.liking(item, truth) + truth.quality(item_id) + truth.noise(self.user_id, item_id)
        )
        return float(FATIGUE ** self.ignored.get(item_id, 0) * sigmoid(CLICK_BIAS + appeal))

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
        self._remember(items, actions)
        clicks = sum(action.action is Action.CLICK for action in actions)
        return Visit(tuple(actions), len(items), clicks, expected)

    def _remember(self, items: Sequence[SeenItem], actions: Sequence[SimulatedAction]) -> None:
        for item in items:
            self.ignored[item.item_id] = self.ignored.get(item.item_id, 0) + 1
        self.visits += 1
        for action in actions:
            if (visits := REST_VISITS.get(action.action)) is not None:
                self.ignored.pop(action.item_id, None)
                until = self.visits + visits
                self.resting[action.item_id] = max(until, self.resting.get(action.item_id, 0))

    def drift(self, categories: Sequence[str]) -> None:
        """Replace one preferred category."""
        others = [name for name in categories if name not in self.tastes]
        if others and self.tastes:
            strength = self.tastes.pop(self.rng.choice(sorted(self.tastes)))
            self.tastes[self.rng.choice(others)] = strength

    def _react(self, item: SeenItem, truth: GroundTruth) -> list[SimulatedAction]:
        probability = self.click_probability(item, truth)
        if self.rng.random() < probability:
            then = self._after_click(self.liking(item, truth))
            return [
                SimulatedAction(item.item_id, Action.CLICK),
                *([SimulatedAction(item.item_id, then)] if then else []),
            ]
        if probability > 0.0 and not self.affinity(item) and self.rng.random() < SKIP:
            return [SimulatedAction(item.item_id, Action.SKIP)]
        return []

    def _after_click(self, liking: float) -> Action | None:
        warmth = sigmoid(liking)
        if self.rng.random() < BUY * warmth:
            return Action.PURCHASE
        return Action.LIKE if self.rng.random() < LIKE * warmth else None


def look_probability(place: int) -> float:
    """P(look) at a rank, from 1."""
    return float(place**-LOOK_DECAY)


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))

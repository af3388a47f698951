"""Exploration: show now and then what would not have been shown, with a known probability.

The items just below the list are dealt to its places like cards, so that each place has a tail of its own.
With probability ε a place shows an item of its tail in place of its own item. The draws of the places are
independent and no item can come up twice, so the propensity of what is shown is exact:

    1 − ε for the place's own item, ε · P(drawn) for an item of its tail, 1 for a place without a tail.

Every item of list and tails has a positive propensity where 0 < ε < 1, which makes inverse propensity scoring
unbiased on them (Horvitz and Thompson, 1952; for recommenders: Schnabel et al., ICML 2016).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afterclick.api import SamplingPolicy
from afterclick.arrays import Float64Array, IndexArray

TAIL = 10
"""Most items in the tail of one place."""


@dataclass(frozen=True)
class Explored:
    """A list after exploration; every array is (n,)."""

    rows: IndexArray
    """The row shown at each place."""
    propensities: Float64Array
    """The probability that this row is shown at this place."""
    drawn: NDArray[np.bool_]
    """Whether it came from the tail."""


def explore(
    own: IndexArray,
    tail: IndexArray,
    scores: Float64Array,
    rate: float,
    draw: SamplingPolicy,
    dice: np.random.Generator,
) -> Explored:
    """Explore a list. `own` (n,) and `tail` (t,) are rows of `scores` (c,), best first."""
    n = len(own)
    rows, propensities, drawn = own.copy(), np.ones(n), np.zeros(n, bool)
    for place in range(n):
        cards = tail[place::n][:TAIL]
        if not len(cards):
            continue
        chances = chances_of(scores[cards], draw)
        if dice.random() < rate:
            card = int(dice.choice(len(cards), p=chances))
            rows[place], drawn[place] = cards[card], True
            propensities[place] = rate * chances[card]
        else:
            propensities[place] = 1.0 - rate
    return Explored(rows, propensities, drawn)


def chances_of(scores: Float64Array, draw: SamplingPolicy) -> Float64Array:
    """(t,) P(drawn) of each item of a tail, by its score; adds up to 1."""
    if draw is SamplingPolicy.UNIFORM or not (spread := float(scores.std())):
        return np.full(len(scores), 1.0 / len(scores))
    weights = np.exp((scores - scores.max()) / spread)
    return np.asarray(weights / weights.sum())

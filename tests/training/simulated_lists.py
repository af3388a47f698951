"""Lists with exploration that simulated users see, and what another policy would have earned.

The click model knows the expected clicks of each list, so the truth is exact. Exploration is that
of serving.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afterclick.api import SamplingPolicy
from afterclick.events import Action
from ingest.click_model import (
    GroundTruth,
    SeenItem,
    SimulatedAction,
    SimulatedUser,
    look_probability,
)
from serving.eligibility import EXPLORATION_POOL
from serving.request import Options
from serving.rerank import explore
from training.evaluation.off_policy_estimators import LoggedLists

N = 5
"""Items in a list."""
CATEGORIES = tuple(f"c{n}" for n in range(8))
CATALOGUE = [SeenItem(f"i{n}", (CATEGORIES[n % len(CATEGORIES)],)) for n in range(40)]
"""As many items as the page and the alternatives of its ranks hold: all can come up."""
assert len(CATALOGUE) <= N * (1 + EXPLORATION_POOL)
ORDER = np.arange(len(CATALOGUE))
EXPLORE = Options(explore=0.5, sampling=SamplingPolicy.UNIFORM)


@dataclass(frozen=True)
class SimulatedList:
    """A list that a user saw, and the list of the target for the same moment."""

    user: int
    shown: NDArray[np.intp]
    propensities: NDArray[np.float64]
    target: NDArray[np.intp]
    actions: tuple[SimulatedAction, ...]
    truth: float
    """Expected clicks of the target's list."""


def visits(seed: int, users: int, per_user: int, *, same_ranks: bool) -> Iterator[SimulatedList]:
    """What the users see and do.

    With `same_ranks` the target replaces items of the logged page by alternatives of their ranks.
    Otherwise it orders the catalogue anew.
    """
    rng, truth = np.random.default_rng(seed), GroundTruth(seed)
    for number in range(users):
        user = SimulatedUser.create(f"u{number}", CATEGORIES, seed)
        liked = np.array([user.affinity(item) for item in CATALOGUE])
        for _ in range(per_user):
            scores = rng.normal(size=len(CATALOGUE))
            order = np.argsort(-(scores + 0.2 * liked), kind="stable")
            if same_ranks:
                target = np.where(rng.random(N) < 0.5, order[:N], order[N : 2 * N])
            else:
                target = np.argsort(-(scores + liked), kind="stable")[:N]
            explored = explore(order[:N], order[N:], scores, EXPLORE, rng)
            expected = sum(
                look_probability(place) * user.click_probability(CATALOGUE[item], truth)
                for place, item in enumerate(target.tolist(), start=1)
            )
            seen = [CATALOGUE[item] for item in explored.rows.tolist()]
            actions = user.visit(seen, truth).actions
            yield SimulatedList(
                number, explored.rows, explored.propensities, target, actions, expected
            )


def logged_lists(seen: list[SimulatedList]) -> LoggedLists:
    """The lists as arrays; the reward is a click."""
    clicked = [{a.item_id for a in one.actions if a.action is Action.CLICK} for one in seen]
    return LoggedLists(
        user=np.array([one.user for one in seen]),
        owner=np.repeat(np.arange(len(seen)), N),
        rank=np.tile(np.arange(N), len(seen)),
        item=np.concatenate([one.shown for one in seen]).astype(np.int32),
        propensity=np.concatenate([one.propensities for one in seen]),
        reward=np.array(
            [
                float(CATALOGUE[item].item_id in chosen)
                for one, chosen in zip(seen, clicked, strict=True)
                for item in one.shown.tolist()
            ]
        ),
        target=np.stack([one.target for one in seen]).astype(np.int32),
    )

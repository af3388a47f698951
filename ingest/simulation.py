"""Simulate users who view recommendations or popular items and send feedback.

reads   http  GET /categories, /health/ready, /popular; POST /recommendations
        file  the reviews and items of a dataset, to fit latent factors of its items
writes  http  POST /feedback

Half of the users see decayed popularity instead of recommendations: /popular over a week, the same
list for all, without items they acted on. With `content`, a third of the users see lists by content
alone. Because the click model is known, the lift of recommendations over each is measured exactly.
What this can show, and what not: `ingest/click_model.py`.

Fitted latent factors: a truncated SVD of the users × items matrix, each entry divided by the square
roots of its row's and column's sum, without the first component, which is popularity. The mean of
an item's last category, the most special one, is subtracted: what remains differs between items of
one category.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import cycle
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from afterclick.api import HalfLife, ListedItem, Policy
from afterclick.arrays import Float64Array, Int64Array
from afterclick.errors import BadDataset, BadInput
from afterclick.io.client import AsyncClient
from ingest.click_model import (
    DIMENSIONS,
    LATENT_STRENGTH,
    Factors,
    GroundTruth,
    LatentTaste,
    SeenItem,
    SimulatedAction,
    SimulatedUser,
)
from ingest.datasets import Dataset
from ingest.items import read_items
from ingest.reading import read_interactions
from ingest.rows import ReadReport

MAX_CONCURRENT_VISITS = 16
POPULAR_POOL = 200
RESAMPLES = 2000
MAX_CATEGORY_SHARE = 0.34
"""A category with a larger share of the catalogue than this is not a preference."""


class SimulatedArm(StrEnum):
    """Which lists a user sees."""

    RECOMMENDED = "recommended"
    CONTENT = "content"
    """Recommendations by the policy `content`."""
    POPULAR = "popular"
    """Decayed popularity, half-life a week."""


class SimulationConfig(BaseModel):
    """Parameters of a simulation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shoppers: int = Field(100, ge=2)
    visits: int = Field(10, ge=1)
    """Lists viewed per user."""
    n: int = Field(10, ge=1, le=100)
    """Items per list."""
    pause_s: float = Field(0.0, ge=0)
    """Minimum seconds between two rounds of visits, so that the stream can keep up."""
    drift: float = Field(0.0, ge=0, le=1)
    """Probability that a preference changes between two visits."""
    latent: float = Field(LATENT_STRENGTH, ge=0)
    """Size of the part of taste that no category shows; 0: none."""
    hot: tuple[str, ...] = ()
    """Items with extra quality for all users."""
    seed: int = 7
    control: bool = True
    """Show decayed popularity to a part of the users; otherwise experiments assign the lists."""
    content: bool = False
    """Show lists by content alone to a part of the users."""
    run: str = "sim"
    """Prefix of user ids: the same run and seed create the same users."""


class ControlMessage(BaseModel):
    """Changes to a running simulation; omitted fields keep their value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hot: tuple[str, ...] | None = None
    drift: float | None = Field(None, ge=0, le=1)
    held: bool | None = None
    """True pauses the simulation before the next visit."""


@dataclass
class Counters:
    """Impressions and actions of a user."""

    shown: int = 0
    clicks: int = 0
    expected_clicks: float = 0.0
    purchases: int = 0
    sent: int = 0


@dataclass
class Participant:
    """A user with their arm and counters."""

    user: SimulatedUser
    arm: SimulatedArm
    acted_on: set[str] = field(default_factory=set)
    counters: Counters = field(default_factory=Counters)
    position: str = ""
    """Log position of their last action."""


class Simulation:
    """Runs a simulation against the API at `url`. Raises Unavailable if it does not respond.

    `factors`: item id → latent factors; default: those of generated shops.
    """

    def __init__(
        self,
        url: str,
        plan: SimulationConfig,
        key: str | None = None,
        factors: Mapping[str, Factors] | None = None,
    ) -> None:
        self._plan, self._drift = plan, plan.drift
        self._latent = LatentTaste(plan.latent, factors)
        self._url, self._key = url, key
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._truth = GroundTruth(plan.seed, frozenset(plan.hot), self._latent)
        self._gate = asyncio.Semaphore(MAX_CONCURRENT_VISITS)
        self._categories: tuple[str, ...] = ()
        self.participants: list[Participant] = []

    async def run(self, on_round: Callable[[int], None] = lambda _: None) -> list[Participant]:
        """Run all visits round by round; returns the participants with their counters."""
        async with AsyncClient(self._url, self._key, timeout_s=10.0) as api:
            self._categories = await categories(api)
            self.participants = self._create_participants()
            for n in range(self._plan.visits):
                pause = asyncio.create_task(asyncio.sleep(self._plan.pause_s))
                popular = _seen((await api.popular(POPULAR_POOL, HalfLife.WEEK)).items)
                await asyncio.gather(
                    *(self._visit(api, participant, popular) for participant in self.participants)
                )
                await pause
                on_round(n + 1)
        return self.participants

    def apply(self, steering: ControlMessage) -> None:
        """Apply changes from the next visit on. Call on the event loop."""
        if steering.hot is not None:
            self._truth = GroundTruth(self._plan.seed, frozenset(steering.hot), self._latent)
        if steering.drift is not None:
            self._drift = steering.drift
        if steering.held is not None:
            (self._resumed.clear if steering.held else self._resumed.set)()

    def _create_participants(self) -> list[Participant]:
        plan = self._plan
        arms = [SimulatedArm.RECOMMENDED]
        arms += [SimulatedArm.CONTENT] * plan.content + [SimulatedArm.POPULAR] * plan.control
        ids = [f"{plan.run}-{plan.seed}-{n}" for n in range(plan.shoppers)]
        return [
            Participant(SimulatedUser.create(user_id, self._categories, plan.seed), arm)
            for user_id, arm in zip(ids, cycle(arms), strict=False)
        ]

    async def _visit(
        self, api: AsyncClient, participant: Participant, popular: Sequence[SeenItem]
    ) -> None:
        async with self._gate:
            await self._resumed.wait()
            user = participant.user
            if user.rng.random() < self._drift:
                user.drift(self._categories)
            items, impression_id = await self._fetch_list(api, participant, popular)
            visit = user.visit(items, self._truth)
            counters = participant.counters
            counters.shown += visit.shown
            counters.clicks += visit.clicks
            counters.expected_clicks += visit.expected_clicks
            for action in visit.actions:
                await self._send_feedback(api, participant, action, impression_id)

    async def _fetch_list(
        self, api: AsyncClient, participant: Participant, popular: Sequence[SeenItem]
    ) -> tuple[Sequence[SeenItem], str | None]:
        if participant.arm is SimulatedArm.POPULAR:
            fresh = [item for item in popular if item.item_id not in participant.acted_on]
            return fresh[: self._plan.n], None
        # the next list must reflect the last action
        after = participant.position or None
        more = {"policy": Policy.CONTENT} if participant.arm is SimulatedArm.CONTENT else {}
        answer = await api.recommendations(
            participant.user.user_id, self._plan.n, after=after, **more
        )
        return _seen(answer.items), answer.impression_id

    async def _send_feedback(
        self,
        api: AsyncClient,
        participant: Participant,
        action: SimulatedAction,
        impression_id: str | None,
    ) -> None:
        user_id = participant.user.user_id
        accepted = await api.feedback(
            user_id, action.item_id, action.action, impression_id=impression_id
        )
        participant.position = accepted.position
        participant.acted_on.add(action.item_id)
        participant.counters.sent += 1
        participant.counters.purchases += action.action.value == "purchase"


def progress_summary(participants: Sequence[Participant]) -> dict[str, Any]:
    """Click-through rates of the arms and the lift over popularity, without its interval."""
    arms = _arms(participants)
    return {
        "shoppers": len(participants),
        "feedback": sum(c.counters.sent for c in participants),
        "arms": {
            arm.value: _counts(counters)
            for arm, counters in arms.items()
            if counters or arm is not SimulatedArm.CONTENT
        },
        "lift": round(_lift(arms), 4),
    }


def summary(participants: Sequence[Participant], seed: int = 0) -> dict[str, Any]:
    """Click-through rates and the lifts with their 95 % intervals (bootstrap over users)."""
    arms = _arms(participants)
    draws = [_resampled(arms, random.Random(seed + n)) for n in range(RESAMPLES)]
    figures = {**progress_summary(participants), "lift_95": _interval(draws, SimulatedArm.POPULAR)}
    if not arms[SimulatedArm.CONTENT]:
        return figures
    return figures | {
        "content_lift": round(_lift(arms, SimulatedArm.CONTENT), 4),
        "content_lift_95": _interval(draws, SimulatedArm.CONTENT),
    }


def _interval(draws: Sequence[Arms], base: SimulatedArm) -> list[float]:
    lifts = sorted(_lift(arms, base) for arms in draws)
    return [round(lifts[int(RESAMPLES * q)], 4) for q in (0.025, 0.975)]


Arms = dict[SimulatedArm, list[Counters]]


def _arms(participants: Sequence[Participant]) -> Arms:
    return {arm: [c.counters for c in participants if c.arm is arm] for arm in SimulatedArm}


async def categories(api: AsyncClient) -> tuple[str, ...]:
    """Categories narrow enough to be a preference. Raises BadInput if there are none."""
    rows = (await api.categories()).categories
    catalogue = (await api.get("/health/ready"))["parts"]["catalogue"]
    narrow = tuple(row.category for row in rows if row.items <= MAX_CATEGORY_SHARE * catalogue)
    if not narrow:
        raise BadInput("the catalogue has no narrow categories: run `afterclick ingest items`")
    return narrow


def _counts(counters: Sequence[Counters]) -> dict[str, float]:
    shown, clicks = sum(x.shown for x in counters), sum(x.clicks for x in counters)
    return {
        "shown": shown,
        "clicks": clicks,
        "purchases": sum(x.purchases for x in counters),
        "ctr": round(clicks / shown, 5) if shown else 0.0,
        "expected_ctr": round(sum(x.expected_clicks for x in counters) / shown, 5)
        if shown
        else 0.0,
    }


def _resampled(arms: Arms, rng: random.Random) -> Arms:
    return {
        arm: rng.choices(counters, k=len(counters)) if counters else []
        for arm, counters in arms.items()
    }


def _lift(arms: Arms, base: SimulatedArm = SimulatedArm.POPULAR) -> float:
    """Relative CTR gain of recommended lists over those of another arm."""
    own, other = _ctr(arms[SimulatedArm.RECOMMENDED]), _ctr(arms[base])
    return own / other - 1.0 if other else 0.0


def _ctr(counters: Sequence[Counters]) -> float:
    return sum(x.clicks for x in counters) / max(sum(x.shown for x in counters), 1)


def _seen(items: Sequence[ListedItem]) -> list[SeenItem]:
    return [SeenItem(item.item_id, item.categories) for item in items]


MIN_REVIEWS = 5
"""Reviews that an item needs for factors."""


def fitted_factors(dataset: Dataset) -> dict[str, Factors]:
    """item_id → factors; their variance over items is about 1 in each dimension.

    Raises BadDataset if too few items have MIN_REVIEWS reviews.
    """
    batches = list(read_interactions(dataset.reviews, ReadReport(), dataset.reviews_format))
    users, _ = _numbered(batch["user_id"] for batch in batches)
    items, item_ids = _numbered(batch["item_id"] for batch in batches)
    known = np.bincount(items, minlength=len(item_ids)) >= MIN_REVIEWS
    if known.sum() <= DIMENSIONS + 1:
        raise BadDataset(
            f"{dataset.path}: latent factors need more than {DIMENSIONS + 1} items with "
            f"{MIN_REVIEWS} reviews, found {known.sum()}; give a larger dataset or none"
        )
    kept = known[items]
    vectors = _components(users[kept], (np.cumsum(known) - 1)[items[kept]])
    names = [name for name, keep in zip(item_ids, known, strict=True) if keep]
    residuals = _scaled(_without_categories(vectors, names, _categories(dataset)))
    return {name: tuple(row) for name, row in zip(names, residuals.tolist(), strict=True)}


def _numbered(columns: Iterable[pa.Array]) -> tuple[Int64Array, list[str]]:
    """(n,) index of each value, and the values."""
    encoded = pa.chunked_array(list(columns), pa.string()).combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _components(users: Int64Array, items: Int64Array) -> Float64Array:
    """(n_items, DIMENSIONS) right singular vectors, without the first."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import svds

    matrix = csr_matrix((np.ones(len(users)), (users, items)))
    matrix.data[:] = 1.0  # a repeated review counts once
    rows, columns = matrix.nonzero()
    per_user, per_item = (np.asarray(matrix.sum(axis=axis)).ravel() for axis in (1, 0))
    matrix.data /= np.sqrt(per_user[rows] * per_item[columns])
    start = np.ones(min(matrix.shape))  # the same result in every run
    _, values, vectors = svds(matrix, k=DIMENSIONS + 1, v0=start)
    return np.asarray(vectors[np.argsort(-values)[1:]].T)


def _categories(dataset: Dataset) -> dict[str, str]:
    """item_id → its last category."""
    if dataset.items is None:
        return {}
    listed = read_items(dataset.items, ReadReport(), dataset.items_format)
    return {item.item_id: item.categories[-1] for item in listed if item.categories}


def _without_categories(
    vectors: Float64Array, names: list[str], category: Mapping[str, str]
) -> Float64Array:
    """Minus the mean of each category; items without a category share one."""
    _, group = np.unique([category.get(name, "") for name in names], return_inverse=True)
    sums = np.zeros((int(group.max()) + 1, vectors.shape[1]))
    np.add.at(sums, group, vectors)
    return np.asarray(vectors - (sums / np.bincount(group)[:, None])[group])


def _scaled(vectors: Float64Array) -> Float64Array:
    """Each dimension of equal spread, then each item of length √DIMENSIONS, or 0."""
    even = vectors / np.maximum(vectors.std(axis=0), 1e-12)
    length = np.linalg.norm(even, axis=1, keepdims=True)
    return np.asarray(even * np.sqrt(DIMENSIONS) / np.maximum(length, 1e-9))

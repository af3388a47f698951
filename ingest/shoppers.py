"""Let simulated shoppers shop: they look at what the API recommends, or at what is popular, and act.

reads   http  GET /categories, /health/ready, /popular; POST /recommendations
writes  http  POST /feedback

Half of the shoppers are shown /popular in place of /recommendations, the same for everybody, less what they
have acted on: the truth is known, so what recommending is worth is measured.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from afterclick.client import AsyncClient, RankedItem
from afterclick.errors import BadInput
from ingest.simulator import Deed, SeenItem, Shopper, Truth

AT_ONCE = 16
POPULAR_POOL = 200
RESAMPLES = 2000
WIDEST_CATEGORY = 0.34
"""A category that holds more of the catalogue than this is no taste."""


class Arm(StrEnum):
    """What a shopper is shown."""

    RECOMMENDED = "recommended"
    POPULAR = "popular"


class Plan(BaseModel):
    """What to simulate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shoppers: int = Field(100, ge=2)
    visits: int = Field(10, ge=1)
    """Lists that each shopper looks at."""
    n: int = Field(10, ge=1, le=100)
    """Items in a list."""
    pause_s: float = Field(0.0, ge=0)
    """Least time between two rounds of visits, to give the stream time to count."""
    drift: float = Field(0.0, ge=0, le=1)
    """Probability that a taste changes between two visits."""
    hot: tuple[str, ...] = ()
    """Items that everybody likes just now."""
    seed: int = 7
    control: bool = True
    """Whether every second shopper sees what is popular, whatever the API recommends."""
    run: str = "sim"
    """Begins every shopper's id: the same run and seed are the same people."""


class Steering(BaseModel):
    """What may change while shoppers shop; what is left out stays."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hot: tuple[str, ...] | None = None
    drift: float | None = Field(None, ge=0, le=1)
    held: bool | None = None
    """Nobody begins a visit while this is true."""


@dataclass
class Ledger:
    """What a shopper was shown and did, per round."""

    shown: int = 0
    clicks: int = 0
    expected_clicks: float = 0.0
    purchases: int = 0
    sent: int = 0


@dataclass
class Customer:
    """A shopper, the arm they are in, and their ledger."""

    shopper: Shopper
    arm: Arm
    acted_on: set[str] = field(default_factory=set)
    ledger: Ledger = field(default_factory=Ledger)
    position: str = ""
    """Where in the log their last deed lies."""


class Mall:
    """Runs a plan against the API at `url`. Raises Unavailable where it does not answer."""

    def __init__(self, url: str, plan: Plan, key: str | None = None) -> None:
        self._plan, self._drift = plan, plan.drift
        self._url, self._key = url, key
        self._going = asyncio.Event()
        self._going.set()
        self._truth = Truth(plan.seed, frozenset(plan.hot))
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._categories: tuple[str, ...] = ()
        self.customers: list[Customer] = []

    async def run(self, on_round: Callable[[int], None] = lambda _: None) -> list[Customer]:
        """Every shopper's visits, a round at a time; returns everybody with their ledgers."""
        async with AsyncClient(self._url, self._key, timeout_s=10.0) as api:
            self._categories = await categories(api)
            self.customers = self._invite()
            for n in range(self._plan.visits):
                pause = asyncio.create_task(asyncio.sleep(self._plan.pause_s))
                popular = _seen((await api.popular(POPULAR_POOL)).items)
                await asyncio.gather(
                    *(self._visit(api, customer, popular) for customer in self.customers)
                )
                await pause
                on_round(n + 1)
        return self.customers

    def steer(self, steering: Steering) -> None:
        """Change what may change, from the next visit on. Call on the event loop."""
        if steering.hot is not None:
            self._truth = Truth(self._plan.seed, frozenset(steering.hot))
        if steering.drift is not None:
            self._drift = steering.drift
        if steering.held is not None:
            (self._going.clear if steering.held else self._going.set)()

    def _invite(self) -> list[Customer]:
        plan = self._plan
        others = Arm.POPULAR if plan.control else Arm.RECOMMENDED
        arms = [Arm.RECOMMENDED, others] * ((plan.shoppers + 1) // 2)
        ids = [f"{plan.run}-{plan.seed}-{n}" for n in range(plan.shoppers)]
        return [
            Customer(Shopper.born(user_id, self._categories, plan.seed), arm)
            for user_id, arm in zip(ids, arms, strict=False)
        ]

    async def _visit(
        self, api: AsyncClient, customer: Customer, popular: Sequence[SeenItem]
    ) -> None:
        async with self._gate:
            await self._going.wait()
            shopper = customer.shopper
            if shopper.dice.random() < self._drift:
                shopper.drift(self._categories)
            items, impression_id = await self._look(api, customer, popular)
            visit = shopper.visit(items, self._truth)
            ledger = customer.ledger
            ledger.shown += visit.shown
            ledger.clicks += visit.clicks
            ledger.expected_clicks += visit.expected_clicks
            for deed in visit.deeds:
                await self._tell(api, customer, deed, impression_id)

    async def _look(
        self, api: AsyncClient, customer: Customer, popular: Sequence[SeenItem]
    ) -> tuple[Sequence[SeenItem], str | None]:
        if customer.arm is Arm.POPULAR:
            fresh = [item for item in popular if item.item_id not in customer.acted_on]
            return fresh[: self._plan.n], None
        # never a list that does not know the last deed
        after = customer.position or None
        answer = await api.recommendations(customer.shopper.user_id, self._plan.n, after=after)
        return _seen(answer.items), answer.impression_id

    async def _tell(
        self, api: AsyncClient, customer: Customer, deed: Deed, impression_id: str | None
    ) -> None:
        user_id = customer.shopper.user_id
        told = await api.feedback(user_id, deed.item_id, deed.action, impression_id=impression_id)
        customer.position = told.position
        customer.acted_on.add(deed.item_id)
        customer.ledger.sent += 1
        customer.ledger.purchases += deed.action.value == "purchase"


def so_far(customers: Sequence[Customer]) -> dict[str, Any]:
    """Click-through rates of both arms, and the lift; quickly, so without its interval."""
    arms = _arms(customers)
    return {
        "shoppers": len(customers),
        "feedback": sum(c.ledger.sent for c in customers),
        "arms": {arm.value: _figures(ledgers) for arm, ledgers in arms.items()},
        "lift": round(_lift(arms), 4),
    }


def summary(customers: Sequence[Customer], seed: int = 0) -> dict[str, Any]:
    """Click-through rates of both arms, and the lift with its 95 % interval (bootstrap over shoppers)."""
    arms = _arms(customers)
    lifts = sorted(_lift(_resampled(arms, random.Random(seed + n))) for n in range(RESAMPLES))
    interval = [round(lifts[int(RESAMPLES * q)], 4) for q in (0.025, 0.975)]
    return {**so_far(customers), "lift_95": interval}


def _arms(customers: Sequence[Customer]) -> dict[Arm, list[Ledger]]:
    return {arm: [c.ledger for c in customers if c.arm is arm] for arm in Arm}


async def categories(api: AsyncClient) -> tuple[str, ...]:
    """Categories narrow enough to be a taste. Raises BadInput where the catalogue has none."""
    rows = (await api.categories()).categories
    catalogue = (await api.get("/health/ready"))["parts"]["catalogue"]
    narrow = tuple(row.category for row in rows if row.items <= WIDEST_CATEGORY * catalogue)
    if not narrow:
        raise BadInput(
            "the catalogue has no categories to have a taste for: run `afterclick ingest items`"
        )
    return narrow


def _figures(ledgers: Sequence[Ledger]) -> dict[str, float]:
    shown, clicks = sum(x.shown for x in ledgers), sum(x.clicks for x in ledgers)
    return {
        "shown": shown,
        "clicks": clicks,
        "purchases": sum(x.purchases for x in ledgers),
        "ctr": round(clicks / shown, 5) if shown else 0.0,
        "expected_ctr": round(sum(x.expected_clicks for x in ledgers) / shown, 5) if shown else 0.0,
    }


def _resampled(arms: dict[Arm, list[Ledger]], dice: random.Random) -> dict[Arm, list[Ledger]]:
    return {
        arm: dice.choices(ledgers, k=len(ledgers)) if ledgers else []
        for arm, ledgers in arms.items()
    }


def _lift(arms: dict[Arm, list[Ledger]]) -> float:
    """Relative gain in CTR of what is recommended over what is popular."""
    rates = {}
    for arm, ledgers in arms.items():
        rates[arm] = sum(x.clicks for x in ledgers) / max(sum(x.shown for x in ledgers), 1)
    return rates[Arm.RECOMMENDED] / rates[Arm.POPULAR] - 1.0 if rates[Arm.POPULAR] else 0.0


def _seen(items: Sequence[RankedItem]) -> list[SeenItem]:
    return [SeenItem(item.item_id, item.categories) for item in items]

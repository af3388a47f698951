"""How long each step of a list takes that no cache holds, measured in this process.

reads   topic  items, models
        redis  {u:<user>}:history, {p:reviews:0}:counts, :trends, :position
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from afterclick.settings import Settings
from infra.benchmarks.harness import READY_S, wait_for
from infra.benchmarks.synthetic import SyntheticShop
from serving.eligibility import Eligibility
from serving.recommender import render, rendered_list, request_user
from serving.request import Options, RecommendationRequest
from serving.rerank import rerank
from serving.service import Service
from serving.state.history import Rows
from serving.state.snapshot import ServingSnapshot
from serving.tiers import PersonalisedTier, TierContext

STEPS = ("user_state", "user_vectors", "candidates", "features", "trees", "reasons_json", "rerank")
"""A plain list takes all but `rerank`, which is measured with diversity."""
PASSES = 5
DIVERSE = Options(diversity=0.3)


def steps_us(settings: Settings, shop: SyntheticShop, users: int, n: int) -> dict[str, float]:
    """Step → mean microseconds of it in lists of `n` items for the first `users` of the shop.

    The fastest of `PASSES` for each user, so that other processes of the machine count little.
    """
    return asyncio.run(_steps_us(settings, shop, users, n))


async def _steps_us(
    settings: Settings, shop: SyntheticShop, users: int, n: int
) -> dict[str, float]:
    service = Service(settings)
    await service.start()
    try:
        await asyncio.to_thread(_wait_loaded, service, shop)
        snapshot = service.snapshots.current
        requests = [RecommendationRequest(user, n) for user in shop.users[:users]]
        rows = [await service.store.rows(request.user_id) for request in requests]
        passes = [
            [_timed(service, snapshot, *pair) for pair in zip(requests, rows, strict=True)]
            for _ in range(PASSES)
        ]
    finally:
        await service.stop()
    mean_us = np.min(passes, axis=0).mean(axis=0) * 1e6
    return dict(zip(STEPS, mean_us.round(1).tolist(), strict=True))


def _wait_loaded(service: Service, shop: SyntheticShop) -> None:
    """Wait for model, catalogue and trends. Raises Unavailable."""

    def is_loaded() -> bool:
        has_model = service.snapshots.current.loaded.model is not None
        return has_model and service.feed.loaded and len(service.catalogue) == len(shop.items)

    wait_for(is_loaded, "the model and its items", READY_S)


def _timed(
    service: Service, snapshot: ServingSnapshot, request: RecommendationRequest, rows: Rows
) -> list[float]:
    """Seconds of each of STEPS."""
    seconds, steps = [], _steps(service, snapshot, request, rows)
    began = time.perf_counter()
    for _ in steps:
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    return [*seconds[: STEPS.index("rerank")], seconds[-1]]


def _steps(
    service: Service, snapshot: ServingSnapshot, request: RecommendationRequest, rows: Rows
) -> Iterator[None]:
    """Make a list as the recommender does, with a pause after each step."""
    signals, now_ms = service.settings.stream.signals, time.time() * 1000
    user = request_user(request, rows, snapshot, signals, now_ms)
    yield
    generator, ranker = snapshot.generator, snapshot.loaded.ranker
    assert generator is not None
    tier = PersonalisedTier(generator, generator.query(user.state, snapshot.view))
    yield
    eligible = Eligibility.of(snapshot, request, user.state.seen, None)
    context = TierContext(snapshot, user, eligible)
    candidates = eligible.fill(eligible.filter(tier.retrieve(context)), snapshot, tier.fill)
    yield
    rows_of_features = generator.features(tier.query, candidates.items)
    yield
    found = ranker.best(rows_of_features, eligible.pool_size)
    ranked = tier.ranked(context, candidates, found)
    yield
    rendered_list(ranked, render(ranked, snapshot, None), request, reduced=False)
    yield
    diverse = replace(request, options=DIVERSE)
    eligible = Eligibility.of(snapshot, diverse, user.state.seen, None)
    pool = tier.rank(TierContext(snapshot, user, eligible), candidates)
    yield  # between two steps
    rerank(pool, snapshot, diverse, np.random.default_rng(1))
    yield

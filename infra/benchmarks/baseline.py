"""The same route as most would first write it: what the served one is measured against.

FastAPI with a pydantic response model, redis-py, exact nearest neighbours, and the `lightgbm`
package for scores and contributions. It answers with the same items from the same model, history
and trends.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import lightgbm
import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Query
from numpy.typing import NDArray
from redis.asyncio import Redis

from afterclick import api, events
from afterclick.features import FEATURES, PARTS
from afterclick.ranking import CandidateGenerator
from afterclick.retrieval import SOURCES
from afterclick.settings import Settings
from afterclick.state import HistoryEntry
from afterclick.user_vectors import UserState
from serving import tiers
from serving.eligibility import Eligibility
from serving.explain import reasons, source_reasons
from serving.recommender import describe
from serving.request import RequestUser
from serving.service import Service
from serving.state.loaded_ranker import FILE


def create_app(settings: Settings) -> FastAPI:
    """The plain application. It shares the feeds of the Service, not its request path."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(lifespan=lifespan)
    redis = Redis.from_url(settings.redis.url)
    boosters: dict[str, lightgbm.Booster] = {}

    @app.get("/recommendations")
    async def recommendations(
        user_id: Annotated[str, Query(max_length=128)], n: Annotated[int, Query(ge=1, le=200)] = 10
    ) -> api.Recommendations:
        world = service.snapshots.current
        key = settings.redis.keys.history(user_id)
        rows: Any = await redis.zrange(key, 0, 199, desc=True, withscores=True)
        history = [HistoryEntry.from_member(m, t) for m, t in rows]
        state = UserState.of(history, world.find, settings.stream.weights, time.time() * 1000)
        model = world.loaded.model
        if model is None or model.factors is None or model.content is None or not len(state.items):
            items = Eligibility(n, state.seen).eligible(world.trending)[:n]
            parts: dict[str, NDArray[Any]] = {"trend": world.trend_score[items]}
            source, sources = api.Tier.TRENDING, ["trending"] * len(items)
            words = source_reasons(items, sources)
        else:
            if model.version not in boosters:
                path = settings.artifacts / model.version / FILE
                boosters[model.version] = lightgbm.Booster(model_file=str(path))
            booster = boosters[model.version]
            generator = CandidateGenerator.exact(model)
            query = generator.query(state, world.view)
            found = generator.retrieve(query)
            table = generator.features(query, found.items)
            scores = np.asarray(booster.predict(table, num_threads=1))
            top = np.argsort(-scores)[:n]
            items = found.items[top]
            sources = [SOURCES[s] for s in found.sources[top].tolist()]
            contributions = np.asarray(
                booster.predict(table[top], pred_contrib=True, num_threads=1)
            )
            source, parts = api.Tier.PERSONALISED, dict(group_contributions(contributions))
            user = RequestUser.of(user_id, True, history, state)
            words = reasons(world, user, items, sources)
        listed = []
        for i, item in enumerate(items.tolist()):
            receipt = {name: float(part[i]) for name, part in parts.items()}
            listed.append(
                api.RecommendedItem(
                    **describe(service.catalogue, world.ids[item]),
                    score=sum(receipt.values()),
                    source=sources[i],
                    reason=words[i],
                    badges=list(world.badges.get(item, ())),
                    contributions=receipt,
                )
            )
        return api.Recommendations(
            user_id=user_id,
            source=source,
            degraded=False,
            fresh=None,
            model_version=world.loaded.version,
            impression_id=events.new_id(),
            as_of=dict(service.feed.positions),
            items=listed,
        )

    @app.get("/similar-items")
    async def similar_items(
        item_id: str, n: Annotated[int, Query(ge=1, le=200)] = 10
    ) -> api.SimilarItems:
        world = service.snapshots.current
        at = world.find(item_id)
        if at is None or world.loaded.model is None:
            raise HTTPException(404, "no such item")
        items, scores = tiers.similar_items(world, at, n)
        listed = [
            api.ListedItem(
                **describe(service.catalogue, world.ids[item]), score=score, reason="like the item"
            )
            for item, score in zip(items.tolist(), scores.tolist(), strict=True)
        ]
        return api.SimilarItems(item_id=item_id, model_version=world.loaded.version, items=listed)

    @app.get("/health/ready")
    async def ready() -> dict[str, str | None]:
        return {"status": "ready", "model": service.snapshots.current.loaded.version or None}

    return app


def main() -> None:
    """Run it as `afterclick serve` runs the served one: one worker, uvloop, httptools."""
    settings = Settings()
    uvicorn.run(
        create_app(settings),
        host=settings.serving.host,
        port=settings.serving.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()


def group_contributions(contributions: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Group → (c,), and `base`, from LightGBM's pred_contrib (c, F + 1); they add up to the
    score."""
    groups = np.array([part for _, part in FEATURES])
    sums = {part: contributions[:, :-1][:, groups == part].sum(axis=1) for part in PARTS}
    return {**sums, "base": contributions[:, -1]}

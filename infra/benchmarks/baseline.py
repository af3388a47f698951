"""The baseline of `bench serve`: the same routes in a straightforward implementation.

FastAPI with a pydantic response model, redis-py, exact nearest neighbours, and the `lightgbm`
package for scores and contributions. It returns the same items from the same model, history and
trends.
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

from afterclick import api, events
from afterclick.features import FEATURES, PARTS
from afterclick.io.redis_clients import create_async_redis
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
    """The application. It shares the state of the Service, not its request path."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(lifespan=lifespan)
    redis = create_async_redis(settings.redis)
    boosters: dict[str, lightgbm.Booster] = {}

    @app.get("/recommendations")
    async def recommendations(
        user_id: Annotated[str, Query(max_length=128)], n: Annotated[int, Query(ge=1, le=200)] = 10
    ) -> api.Recommendations:
        snapshot = service.snapshots.current
        key = settings.redis.keys.history(user_id)
        rows: Any = await redis.zrange(key, 0, 199, desc=True, withscores=True)
        history = [HistoryEntry.from_member(m, t) for m, t in rows]
        state = UserState.of(history, snapshot.find, settings.stream.weights, time.time() * 1000)
        model = snapshot.loaded.model
        if model is None or model.factors is None or model.content is None or not len(state.items):
            items = Eligibility(n, state.seen).eligible(snapshot.trending)[:n]
            parts: dict[str, NDArray[Any]] = {"trend": snapshot.trend_score[items]}
            source, sources = api.Tier.TRENDING, ["trending"] * len(items)
            texts = source_reasons(items, sources)
        else:
            if model.version not in boosters:
                path = settings.artifacts / model.version / FILE
                boosters[model.version] = lightgbm.Booster(model_file=str(path))
            booster = boosters[model.version]
            generator = CandidateGenerator.exact(model)
            query = generator.query(state, snapshot.view)
            candidates = generator.retrieve(query)
            table = generator.features(query, candidates.items)
            scores = np.asarray(booster.predict(table, num_threads=1))
            top = np.argsort(-scores)[:n]
            items = candidates.items[top]
            sources = [SOURCES[s] for s in candidates.sources[top].tolist()]
            contributions = np.asarray(
                booster.predict(table[top], pred_contrib=True, num_threads=1)
            )
            source, parts = api.Tier.PERSONALISED, dict(group_contributions(contributions))
            user = RequestUser(history, state, is_known=True)
            texts = reasons(snapshot, user, items, sources)
        listed = []
        for i, item in enumerate(items.tolist()):
            receipt = {name: float(part[i]) for name, part in parts.items()}
            listed.append(
                api.RecommendedItem(
                    **describe(service.catalogue, snapshot.ids[item]),
                    score=sum(receipt.values()),
                    source=sources[i],
                    reason=texts[i],
                    badges=list(snapshot.badges.of(item)),
                    contributions=receipt,
                )
            )
        return api.Recommendations(
            user_id=user_id,
            source=source,
            degraded=False,
            fresh=None,
            model_version=snapshot.loaded.version,
            impression_id=events.new_id(),
            as_of=dict(service.feed.positions),
            items=listed,
        )

    @app.get("/similar-items")
    async def similar_items(
        item_id: str, n: Annotated[int, Query(ge=1, le=200)] = 10
    ) -> api.SimilarItems:
        snapshot = service.snapshots.current
        row = snapshot.find(item_id)
        if row is None or snapshot.loaded.model is None:
            raise HTTPException(404, "unknown item")
        items, scores = tiers.similar_items(snapshot, row, n)
        listed = [
            api.ListedItem(
                **describe(service.catalogue, snapshot.ids[item]),
                score=score,
                reason="like the item",
            )
            for item, score in zip(items.tolist(), scores.tolist(), strict=True)
        ]
        return api.SimilarItems(
            item_id=item_id, model_version=snapshot.loaded.version, items=listed
        )

    @app.get("/health/ready")
    async def ready() -> dict[str, str | None]:
        return {"status": "ready", "model": service.snapshots.current.loaded.version or None}

    return app


def group_contributions(contributions: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Group → (c,), and `base`, from LightGBM's pred_contrib (c, F + 1); the sum is the score."""
    groups = np.array([part for _, part in FEATURES])
    sums = {part: contributions[:, :-1][:, groups == part].sum(axis=1) for part in PARTS}
    return {**sums, "base": contributions[:, -1]}


def main() -> None:
    """Run it like `afterclick serve`: one worker, uvloop, httptools."""
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

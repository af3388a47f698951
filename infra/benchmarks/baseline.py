"""The baseline of `bench serve`: the same routes in a straightforward implementation.

FastAPI with a pydantic response model, redis-py, exact nearest neighbours, and the ranker in
NumPy. It returns the same items from the same model, history and trends.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Query

from afterclick import api, events
from afterclick.arrays import Float64Array, FloatArray, IntArray
from afterclick.io.redis_clients import create_async_redis
from afterclick.kernels import ALL_LEAVES
from afterclick.ranking import CandidateGenerator
from afterclick.retrieval import SOURCES
from afterclick.settings import Settings
from afterclick.state import HistoryEntry
from afterclick.tree_ranker import RECEIPT, TreeRanker
from afterclick.user_vectors import UserState
from serving import tiers
from serving.eligibility import Eligibility
from serving.explain import reasons, source_reasons
from serving.recommender import describe
from serving.request import RequestUser
from serving.service import Service


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

    @app.get("/recommendations")
    async def recommendations(
        user_id: Annotated[str, Query(max_length=128)], n: Annotated[int, Query(ge=1, le=200)] = 10
    ) -> api.Recommendations:
        snapshot = service.snapshots.current
        key = settings.redis.keys.history(user_id)
        rows: Any = await redis.zrange(key, 0, 199, desc=True, withscores=True)
        history = [HistoryEntry.from_member(m, t) for m, t in rows]
        state = UserState.of(history, snapshot.find, settings.stream.signals, time.time() * 1000)
        model, ranker = snapshot.loaded.model, snapshot.loaded.ranker
        if model is None or not isinstance(ranker, TreeRanker) or not len(state.items):
            items = Eligibility(n, state.seen).eligible(snapshot.trending)[:n]
            parts: dict[str, Float64Array] = {"trend": snapshot.trend_score[items]}
            source, sources = api.Tier.TRENDING, ["trending"] * len(items)
            texts = source_reasons(items, sources)
        else:
            generator = CandidateGenerator.exact(model)
            query = generator.query(state, snapshot.view)
            candidates = generator.retrieve(query)
            table = generator.features(query, candidates.items)
            leaves = leaves_of(ranker, table)
            trees = np.arange(leaves.shape[1])
            scores = ranker.parts.sum(axis=0)[trees, leaves].sum(axis=1)
            top = np.argsort(-scores)[:n]
            items = candidates.items[top]
            sources = [SOURCES[s] for s in candidates.sources[top].tolist()]
            contributions = ranker.parts[:, trees, leaves[top]].sum(axis=2)
            source, parts = api.Tier.PERSONALISED, dict(zip(RECEIPT, contributions, strict=True))
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


def leaves_of(ranker: TreeRanker, rows: FloatArray) -> IntArray:
    """(c, t) the leaf of each tree that feature rows (c, F) end in."""
    values = rows[:, ranker.columns]
    above = np.where(np.isnan(values), ranker.unknown_above, values > ranker.borders)
    remaining = np.where(above, ranker.above, np.uint32(ALL_LEAVES))
    possible = np.bitwise_and.reduce(remaining, axis=2).astype(np.int64)
    return np.asarray(np.log2(possible & -possible), np.int32)


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

"""A large shop for the bench: model, catalogue and histories of the sizes and shapes of the real data.

writes  artifact  <home>/artifacts/bench
        topic     items, models
        redis     {u:<user>}:history, {p:reviews:0}:counts, :trends, :position
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import lightgbm
import numpy as np
import redis
from confluent_kafka import Producer
from numpy.typing import NDArray

from afterclick import artifact, events
from afterclick.events import Action, Item, ItemEvent, ModelEvent, ModelPublished
from afterclick.model import Model
from afterclick.scoring import FEATURE_NAMES
from afterclick.settings import Settings
from afterclick.state import HistoryEntry
from afterclick.towers import AGES_DAYS, TowerArrays
from afterclick.trends import Trend
from serving.ranking.ranker import FILE
from training import index

RANK, NEIGHBOURS, CONTENT = 64, 50, 64
DESCRIBED = 0.3
"""Share of the items that have a title, as in the real data."""
TREES, LEAVES = 120, 31
DAY_MS = 86_400_000.0
POSITION = 700_000
"""Offset up to which the state of the first partition of `reviews` is said to be applied."""


@dataclass(frozen=True)
class Shop:
    """What the load asks for."""

    items: list[str]
    users: list[str]
    popularity: NDArray[np.float64]
    models: dict[str, ModelPublished] = field(default_factory=dict)


def make(
    settings: Settings,
    items: int,
    users: int,
    seed: int = 7,
    *,
    state: bool = True,
    versions: Sequence[str] = ("bench",),
) -> Shop:
    """Fill Redis and the topics; returns what there is to ask for. Without `state` Redis is left alone.

    The same model is written under each of `versions`, and the first is published.
    """
    rng = np.random.default_rng(seed)
    ids = [f"B{i:09d}" for i in range(items)]
    popularity = 1.0 / (np.arange(items) + 20.0) ** 0.8
    shop = Shop(ids, [f"user-{i}" for i in range(users)], popularity / popularity.sum())
    producer = Producer(
        {"bootstrap.servers": settings.kafka.bootstrap, "queue.buffering.max.messages": 1_000_000}
    )
    _publish_items(settings, shop, producer)
    shop.models.update(_write_models(settings, shop, versions, rng))
    publish_model(producer, settings, shop.models[versions[0]])
    assert producer.flush(60) == 0, "Kafka did not take the bench's catalogue"
    if state:
        _write_state(settings, shop, rng)
    return shop


def _publish_items(settings: Settings, shop: Shop, producer: Producer) -> None:
    for i, item_id in enumerate(shop.items[: int(len(shop.items) * DESCRIBED)]):
        item = Item(
            item_id=item_id,
            title=f"Item {i} of the usual length of a title",
            categories=("Shop", f"C{i % 80}"),
        )
        event = ItemEvent(id=f"i{i}", source="/bench", time=events.now(), subject=item_id, data=item)
        producer.produce(settings.kafka.topics.items, events.encode(event), item_id)
        producer.poll(0)


def publish_model(producer: Producer, settings: Settings, model: ModelPublished) -> None:
    """Say that a model may be loaded."""
    event = ModelEvent(
        id=events.new_id(), source="/bench", time=events.now(), subject=model.version, data=model
    )
    producer.produce(settings.kafka.topics.models, events.encode(event), "model")


def _write_models(
    settings: Settings, shop: Shop, versions: Sequence[str], rng: np.random.Generator
) -> dict[str, ModelPublished]:
    model = _model(shop, rng)
    assert model.factors is not None
    assert model.towers is not None
    indexes = {index.FILE: model.factors, index.TOWERS: model.towers.targets}
    built = {name: index.build(vectors)[0] for name, vectors in indexes.items()}
    ranker = _ranker(rng)

    def fill(folder: Path, version: str) -> None:
        replace(model, version=version).save(folder)
        for name, made in built.items():
            index.write(made, folder, name)
        (folder / FILE).write_text(ranker)

    written = {}
    for version in versions:
        folder, sha256 = artifact.write(
            settings.artifacts,
            version,
            partial(fill, version=version),
            items=len(model),
            created=events.now().isoformat(),
            parameters=model.parameters(),
        )
        uri = folder.absolute().as_uri()
        written[version] = ModelPublished(version=version, uri=uri, manifest_sha256=sha256)
    return written


def _model(shop: Shop, rng: np.random.Generator) -> Model:
    """Items in 200 tastes: neighbours, factors and content agree about them, as they do in real models."""
    n = len(shop.items)
    taste = rng.integers(0, 200, n)
    centres = rng.normal(size=(200, RANK)) * 0.2
    members = [np.flatnonzero(taste == t) for t in range(200)]
    content = np.zeros((n, CONTENT), np.float32)
    known = int(n * DESCRIBED)
    content[:known] = centres[taste[:known], :CONTENT] + rng.normal(size=(known, CONTENT)) * 0.1
    content[:known] /= np.linalg.norm(content[:known], axis=1, keepdims=True)
    near = np.stack([rng.choice(members[t], NEIGHBOURS) for t in taste]).astype(np.int32)
    same_day = np.stack([rng.choice(members[t], NEIGHBOURS) for t in taste]).astype(np.int32)
    scores = -np.sort(-rng.random((n, NEIGHBOURS)).astype(np.float32) * 0.3, axis=1)
    towers = TowerArrays(
        history=(centres[taste] + rng.normal(size=(n, RANK)) * 0.1).astype(np.float32),
        targets=np.c_[centres[taste] + rng.normal(size=(n, RANK)) * 0.1, np.zeros(n)].astype(np.float32),
        ages=np.ones(len(AGES_DAYS) + 1, np.float32),
    )
    return Model(
        version="bench",
        item_ids=np.array(shop.items),
        popularity=(shop.popularity * 700_000).astype(np.float32),
        first_seen_ms=time.time() * 1000 - rng.random(n) * 2000 * DAY_MS,
        neighbour_items=near,
        neighbour_scores=scores,
        same_day_items=same_day,
        same_day_scores=scores,
        factors=(centres[taste] + rng.normal(size=(n, RANK)) * 0.1).astype(np.float32),
        content=content,
        towers=towers,
    )


def _ranker(rng: np.random.Generator) -> str:
    """A LambdaMART of the size that training makes, over all features."""
    rows = rng.normal(size=(40_000, len(FEATURE_NAMES))).astype(np.float32)
    wanted = rows @ rng.normal(size=len(FEATURE_NAMES)) + rng.normal(size=len(rows)) > 4
    table = lightgbm.Dataset(rows, wanted.astype(int), group=[40] * 1000, feature_name=list(FEATURE_NAMES))
    parameters = {"objective": "lambdarank", "num_leaves": LEAVES, "verbose": -1, "num_threads": 2, "seed": 1}
    return str(lightgbm.train(parameters, table, TREES).model_to_string())


def _write_state(settings: Settings, shop: Shop, rng: np.random.Generator) -> None:
    """Histories of 1 to 30 events (mean 4), and the counts and trends of all items."""
    keys, now = settings.redis.keys, time.time() * 1000
    client = redis.Redis.from_url(settings.redis.url)
    pipe = client.pipeline(transaction=False)
    for user in shop.users:
        chosen = rng.choice(len(shop.items), min(int(rng.geometric(0.25)), 30), p=shop.popularity)
        rows = {}
        for step, item in enumerate(chosen.tolist()):
            time_ms = int(now - step * DAY_MS - rng.random() * DAY_MS)
            entry = HistoryEntry(f"{user}-{step}", shop.items[item], Action.REVIEW, 5.0, time_ms)
            rows[entry.member()] = time_ms
        pipe.zadd(keys.history(user), rows)
    topic = settings.kafka.topics.reviews
    for item_id, share in zip(shop.items, shop.popularity.tolist(), strict=True):
        count = int(share * 700_000) + 1
        sums = tuple(count * 2.0 ** -(10 - h) for h in range(6))
        pipe.hset(keys.counts(topic, 0), item_id, count)
        pipe.hset(keys.trends(topic, 0), item_id, Trend(now - rng.random() * 30 * DAY_MS, sums).pack())
    pipe.set(keys.position(topic, 0), POSITION)
    pipe.execute()
    client.close()

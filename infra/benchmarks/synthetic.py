"""A large shop for the bench: model, catalogue and histories of the sizes and shapes of the real data.

writes  artifact  <home>/artifacts/bench
        topic     items, models
        redis     {u:<user>}:history, {p:reviews:0}:counts, :trends, :position
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import lightgbm
import numpy as np
import redis
from confluent_kafka import Producer
from numpy.typing import NDArray

from afterclick import artifact, events
from afterclick.events import Action, Item, ItemEvent, ModelEvent, ModelPublished
from afterclick.features import FEATURE_NAMES
from afterclick.model import AGES_DAYS, Model, TowerArrays
from afterclick.settings import Settings
from afterclick.state import HistoryEntry
from afterclick.trends import HALF_LIVES_MS
from serving.state.loaded_ranker import FILE
from training import ann_index

RANK, NEIGHBOURS, CONTENT = 64, 50, 64
DESCRIBED = 0.3
"""Share of the items that have a title, as in the real data."""
TREES, LEAVES = 120, 31
ESTABLISHED = 0.6
"""Share of the votes that established users cast."""
HISTORY = 30
"""Events of a user that are kept."""
CHUNK = 10_000
"""Items whose counts and trends are written in one go."""
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

    @property
    def described(self) -> int:
        """How many of the items, the first, have a title."""
        return int(len(self.items) * DESCRIBED)

    @cached_property
    def cumulated(self) -> NDArray[np.float64]:
        """(items,) the share of an item and of all before it."""
        return np.cumsum(self.popularity)


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


def draw(rng: np.random.Generator, shop: Shop, count: int) -> NDArray[np.int64]:
    """(count,) items at random, as popular as they are."""
    return np.minimum(shop.cumulated.searchsorted(rng.random(count)), len(shop.items) - 1)


def _publish_items(settings: Settings, shop: Shop, producer: Producer) -> None:
    for i, item_id in enumerate(shop.items[: shop.described]):
        item = Item(
            item_id=item_id,
            title=f"Item {i} of the usual length of a title",
            categories=("Shop", f"C{i % 80}"),
        )
        event = ItemEvent(
            id=f"i{i}", source="/bench", time=events.now(), subject=item_id, data=item
        )
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
    indexes = {ann_index.FILE: model.factors, ann_index.TOWERS: model.towers.targets}
    built = {name: ann_index.build(vectors)[0] for name, vectors in indexes.items()}
    if model.content is not None and (content := ann_index.of_content(model.content)) is not None:
        built[ann_index.CONTENT] = content
    ranker = _ranker(rng)

    def fill(folder: Path, version: str) -> None:
        replace(model, version=version).save(folder)
        for name, made in built.items():
            ann_index.write(made, folder, name)
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
    content = np.zeros((n, CONTENT), np.float32)
    known = int(n * DESCRIBED)
    content[:known] = centres[taste[:known], :CONTENT] + rng.normal(size=(known, CONTENT)) * 0.1
    content[:known] /= np.linalg.norm(content[:known], axis=1, keepdims=True)
    near, same_day = _alike(taste, rng), _alike(taste, rng)
    scores = -np.sort(-rng.random((n, NEIGHBOURS), np.float32) * np.float32(0.3), axis=1)
    towers = TowerArrays(
        history=(centres[taste] + rng.normal(size=(n, RANK)) * 0.1).astype(np.float32),
        targets=np.c_[centres[taste] + rng.normal(size=(n, RANK)) * 0.1, np.zeros(n)].astype(
            np.float32
        ),
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


def _alike(taste: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int32]:
    """(n, NEIGHBOURS) for each item, items of the same taste."""
    found = np.empty((len(taste), NEIGHBOURS), np.int32)
    for one in np.unique(taste):
        members = np.flatnonzero(taste == one)
        found[members] = rng.choice(members, (len(members), NEIGHBOURS))
    return found


def _ranker(rng: np.random.Generator) -> str:
    """A LambdaMART of the size that training makes, over all features."""
    rows = rng.normal(size=(40_000, len(FEATURE_NAMES))).astype(np.float32)
    wanted = rows @ rng.normal(size=len(FEATURE_NAMES)) + rng.normal(size=len(rows)) > 4
    table = lightgbm.Dataset(
        rows, wanted.astype(int), group=[40] * 1000, feature_name=list(FEATURE_NAMES)
    )
    parameters = {
        "objective": "lambdarank",
        "num_leaves": LEAVES,
        "verbose": -1,
        "num_threads": 2,
        "seed": 1,
    }
    return str(lightgbm.train(parameters, table, TREES).model_to_string())


def _write_state(settings: Settings, shop: Shop, rng: np.random.Generator) -> None:
    """Histories of 1 to `HISTORY` events (mean 4), and the counts and trends of all items."""
    keys, now = settings.redis.keys, time.time() * 1000
    client = redis.Redis.from_url(settings.redis.url)
    pipe = client.pipeline(transaction=False)
    for user in shop.users:
        chosen = np.unique(draw(rng, shop, min(int(rng.geometric(0.25)), HISTORY)))
        rows = {}
        for step, item in enumerate(rng.permutation(chosen).tolist()):
            time_ms = int(now - step * DAY_MS - rng.random() * DAY_MS)
            entry = HistoryEntry(f"{user}-{step}", shop.items[item], Action.REVIEW, 5.0, time_ms)
            rows[entry.member()] = time_ms
        pipe.zadd(keys.history(user), rows)
    pipe.execute()
    topic = settings.kafka.topics.reviews
    for start in range(0, len(shop.items), CHUNK):
        some = slice(start, start + CHUNK)
        counts = (shop.popularity[some] * 700_000).astype(np.int64) + 1
        votes = counts[:, None] * 2.0 ** -(10.0 - np.arange(len(HALF_LIVES_MS)))
        times = now - rng.random((len(counts), 1)) * 30 * DAY_MS
        trends = np.hstack([times, votes, votes * ESTABLISHED])
        items = shop.items[some]
        pipe.hset(keys.counts(topic, 0), mapping=dict(zip(items, counts.tolist(), strict=True)))
        packed = (row.astype("<f8").tobytes() for row in trends)
        pipe.hset(keys.trends(topic, 0), mapping=dict(zip(items, packed, strict=True)))
        pipe.execute()
    client.set(keys.applied_offset(topic, 0), POSITION)
    client.close()

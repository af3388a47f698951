"""A synthetic shop: model, catalogue and histories with the sizes and shapes of the real data.

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

import numpy as np
from confluent_kafka import Producer

from afterclick import artifact, events
from afterclick.arrays import Float64Array, FloatArray, Int64Array, IntArray
from afterclick.events import Action, Item, ItemEvent, ModelEvent, ModelPublished
from afterclick.features import FEATURE_NAMES
from afterclick.io.kafka_clients import create_producer
from afterclick.io.redis_clients import create_redis
from afterclick.model import Model, TowerArrays
from afterclick.ncf import NcfArrays
from afterclick.sequence_encoder import (
    AGES_DAYS,
    HISTORY,
    N_GAPS,
    N_WEIGHTS,
    SequenceEncoder,
)
from afterclick.settings import Settings
from afterclick.state import HistoryEntry
from afterclick.tree_ranker import FILE, TreeRanker
from afterclick.trends import HALF_LIVES_MS
from training import ann_index
from training.config import RankerConfig
from training.models import boosted_trees

RANK, NEIGHBOURS, CONTENT, HIDDEN = 64, 50, 64, 16
DESCRIBED = 0.3
"""Share of the items with a title, as in the real data."""
ESTABLISHED = 0.6
"""Share of the votes by established users."""
HISTORY_LENGTH = 30
CHUNK = 10_000
"""Items whose counts and trends are written in one round trip."""
DAY_MS = 86_400_000.0
APPLIED_OFFSET = 700_000
"""Applied offset of the first partition of `reviews` in the synthetic state."""


@dataclass(frozen=True)
class SyntheticShop:
    """Items and users to request."""

    items: list[str]
    users: list[str]
    popularity: Float64Array
    models: dict[str, ModelPublished] = field(default_factory=dict)

    @property
    def described(self) -> int:
        """Number of items with a title; they come first."""
        return int(len(self.items) * DESCRIBED)

    def draw(self, rng: np.random.Generator, count: int) -> Int64Array:
        """(count,) random items, by popularity."""
        positions = self._cumulated.searchsorted(rng.random(count))
        return np.minimum(positions, len(self.items) - 1)

    @cached_property
    def _cumulated(self) -> Float64Array:
        """(n_items,) cumulated popularity."""
        return np.cumsum(self.popularity)


def build_shop(
    settings: Settings,
    items: int,
    users: int,
    *,
    state: bool = True,
    versions: Sequence[str] = ("bench",),
) -> SyntheticShop:
    """Fill the topics and, with `state`, Redis.

    Writes the same model under each of `versions` and publishes the first.
    """
    rng = np.random.default_rng(7)
    ids = [f"B{i:09d}" for i in range(items)]
    popularity = 1.0 / (np.arange(items) + 20.0) ** 0.8
    shop = SyntheticShop(ids, [f"user-{i}" for i in range(users)], popularity / popularity.sum())
    producer = create_producer(settings.kafka, {"queue.buffering.max.messages": 1_000_000})
    _publish_items(settings, shop, producer)
    shop.models.update(_write_models(settings, shop, versions, rng))
    publish_model(producer, settings, shop.models[versions[0]])
    assert producer.flush(60) == 0, "Kafka did not acknowledge the catalogue"
    if state:
        _write_state(settings, shop, rng)
    return shop


def _publish_items(settings: Settings, shop: SyntheticShop, producer: Producer) -> None:
    for i, item_id in enumerate(shop.items):
        item = Item(item_id=item_id)
        if i < shop.described:
            title = f"Item {i} of the usual length of a title"
            item = Item(item_id=item_id, title=title, categories=("Shop", f"C{i % 80}"))
        event = ItemEvent(
            id=f"i{i}", source="/bench", time=events.now(), subject=item_id, data=item
        )
        producer.produce(settings.kafka.topics.items, events.encode(event), item_id)
        producer.poll(0)


def publish_model(producer: Producer, settings: Settings, model: ModelPublished) -> None:
    """Announce a model on the topic."""
    event = ModelEvent(
        id=events.new_id(), source="/bench", time=events.now(), subject=model.version, data=model
    )
    producer.produce(settings.kafka.topics.models, events.encode(event), model.version)


def _write_models(
    settings: Settings, shop: SyntheticShop, versions: Sequence[str], rng: np.random.Generator
) -> dict[str, ModelPublished]:
    model = _model(shop, rng)
    assert model.factors is not None
    assert model.towers is not None
    assert model.ncf is not None
    indexes = {
        ann_index.FILE: model.factors,
        ann_index.TOWERS: model.towers.targets,
        ann_index.NCF: model.ncf.targets,
    }
    built = {name: ann_index.build(vectors)[0] for name, vectors in indexes.items()}
    if model.content is not None and (content := ann_index.of_content(model.content)) is not None:
        built[ann_index.CONTENT] = content
    ranker = _ranker(rng)

    def fill(folder: Path, version: str) -> None:
        replace(model, version=version).save(folder)
        for name, made in built.items():
            ann_index.write(made, folder, name)
        ranker.write(folder / FILE)

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


def _model(shop: SyntheticShop, rng: np.random.Generator) -> Model:
    """Items in 200 clusters: neighbours, factors and content agree on them, as in real models."""
    n = len(shop.items)
    cluster = rng.integers(0, 200, n)
    centres = rng.normal(size=(200, RANK)) * 0.2
    content = np.zeros((n, CONTENT), np.float32)
    known = int(n * DESCRIBED)
    content[:known] = centres[cluster[:known], :CONTENT] + rng.normal(size=(known, CONTENT)) * 0.1
    content[:known] /= np.linalg.norm(content[:known], axis=1, keepdims=True)
    neighbours, same_day = _similar_items(cluster, rng), _similar_items(cluster, rng)
    scores = -np.sort(-rng.random((n, NEIGHBOURS), np.float32) * np.float32(0.3), axis=1)
    towers = TowerArrays(
        history=(centres[cluster] + rng.normal(size=(n, RANK)) * 0.1).astype(np.float32),
        targets=np.c_[centres[cluster] + rng.normal(size=(n, RANK)) * 0.1, np.zeros(n)].astype(
            np.float32
        ),
        encoder=_encoder(RANK, rng),
    )
    ncf = NcfArrays(
        history=np.c_[towers.history, rng.normal(size=(n, HIDDEN))].astype(np.float32),
        targets=towers.targets,
        hidden=rng.normal(size=(n, HIDDEN)).astype(np.float32),
        layers=rng.normal(size=(HIDDEN // 2, HIDDEN + 2)).astype(np.float32),
        ages=np.ones(len(AGES_DAYS) + 1, np.float32),
    )
    return Model(
        version="bench",
        item_ids=np.array(shop.items),
        popularity=(shop.popularity * 700_000).astype(np.float32),
        first_seen_ms=time.time() * 1000 - rng.random(n) * 2000 * DAY_MS,
        neighbour_items=neighbours,
        neighbour_scores=scores,
        co_purchase_items=same_day,
        co_purchase_scores=scores,
        factors=(centres[cluster] + rng.normal(size=(n, RANK)) * 0.1).astype(np.float32),
        content=content,
        towers=towers,
        ncf=ncf,
    )


def _encoder(dim: int, rng: np.random.Generator) -> SequenceEncoder:
    """An untrained block whose output is near the mean of its input."""

    def weights(*shape: int) -> FloatArray:
        return np.asarray(rng.normal(size=shape) * 0.1 / dim**0.5, np.float32)

    return SequenceEncoder(
        inputs=weights(N_WEIGHTS + N_GAPS, dim),
        positions=weights(2, HISTORY),
        norms=np.ones((3, dim), np.float32),
        attention=weights(6, dim, dim) + np.eye(dim, dtype=np.float32),
        swiglu=weights(3, 2 * dim, dim),
    )


def _similar_items(cluster: Int64Array, rng: np.random.Generator) -> IntArray:
    """(n, NEIGHBOURS) random items of the same cluster."""
    neighbours = np.empty((len(cluster), NEIGHBOURS), np.int32)
    for number in np.unique(cluster):
        members = np.flatnonzero(cluster == number)
        neighbours[members] = rng.choice(members, (len(members), NEIGHBOURS))
    return neighbours


def _ranker(rng: np.random.Generator) -> TreeRanker:
    """A ranker of the size that training produces, over all features."""
    rows = rng.normal(size=(40_000, len(FEATURE_NAMES))).astype(np.float32)
    relevant = rows @ rng.normal(size=len(FEATURE_NAMES)) + rng.normal(size=len(rows)) > 4
    groups = np.full(1000, 40, np.int32)
    return boosted_trees.fit(rows, relevant.astype(np.float32), groups, RankerConfig())[0]


def _write_state(settings: Settings, shop: SyntheticShop, rng: np.random.Generator) -> None:
    """Histories (1 to `HISTORY_LENGTH` events, mean 4), counts and trends."""
    keys, now = settings.redis.keys, time.time() * 1000
    client = create_redis(settings.redis)
    pipe = client.pipeline(transaction=False)
    for user in shop.users:
        chosen = np.unique(shop.draw(rng, min(int(rng.geometric(0.25)), HISTORY_LENGTH)))
        rows = {}
        for step, item in enumerate(rng.permutation(chosen).tolist()):
            time_ms = int(now - step * DAY_MS - rng.random() * DAY_MS)
            entry = HistoryEntry(f"{user}-{step}", shop.items[item], Action.REVIEW, 5.0, time_ms)
            rows[entry.member()] = time_ms
        pipe.zadd(keys.history(user), rows)
    pipe.execute()
    topic = settings.kafka.topics.reviews
    for start in range(0, len(shop.items), CHUNK):
        chunk = slice(start, start + CHUNK)
        counts = (shop.popularity[chunk] * 700_000).astype(np.int64) + 1
        votes = counts[:, None] * 2.0 ** -(10.0 - np.arange(len(HALF_LIVES_MS)))
        times = now - rng.random((len(counts), 1)) * 30 * DAY_MS
        trends = np.hstack([times, votes, votes * ESTABLISHED])
        items = shop.items[chunk]
        pipe.hset(keys.counts(topic, 0), mapping=dict(zip(items, counts.tolist(), strict=True)))
        packed = (row.astype("<f8").tobytes() for row in trends)
        pipe.hset(keys.trends(topic, 0), mapping=dict(zip(items, packed, strict=True)))
        pipe.execute()
    client.set(keys.applied_offset(topic, 0), APPLIED_OFFSET)
    client.close()

"""A small shop: two kinds of items, a model of them, and their records on Kafka."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from confluent_kafka import Producer

from afterclick import artifact, events
from afterclick.events import Item, ItemEvent, ModelEvent, ModelPublished
from afterclick.model import UNKNOWN_BIAS, Model, TowerArrays, WordVectors
from afterclick.ncf import NcfArrays
from afterclick.sequence_encoder import AGES_DAYS
from afterclick.settings import Settings

KINDS = ("camera", "cable")
PER_KIND = 30
RNG_SEED = 7


def item_ids() -> list[str]:
    """camera-0 … cable-29."""
    return [f"{kind}-{i}" for kind in KINDS for i in range(PER_KIND)]


def catalogue() -> list[Item]:
    """The items with titles, half of them under two categories."""
    return [
        Item(item_id=i, title=f"The {i}", categories=("Electronics", i.split("-")[0].title() + "s"))
        for i in item_ids()
    ]


def wide_catalogue() -> list[Item]:
    """The catalogue with four more kinds, so that one kind is a narrow taste."""
    kinds = ("lamp", "drone", "radio", "tripod")
    more = [
        Item(
            item_id=f"{kind}-{i}",
            title=f"The {kind}-{i}",
            categories=("Electronics", f"{kind.title()}s"),
        )
        for kind in kinds
        for i in range(PER_KIND)
    ]
    return catalogue() + more


def model(version: str, rank: int = 8) -> Model:
    """Items of a kind are neighbours; their factors and content point the same way."""
    rng = np.random.default_rng(RNG_SEED)
    ids = np.array(item_ids())
    n, kind = len(ids), np.repeat(np.arange(len(KINDS)), PER_KIND)
    centres = np.eye(len(KINDS), rank)
    near = centres[kind] + 0.1 * rng.normal(size=(n, rank))
    content = near / np.linalg.norm(near, axis=1, keepdims=True)
    same = np.array(
        [[j for j in range(n) if kind[j] == kind[i] and j != i][:20] for i in range(n)], np.int32
    )
    scores = np.linspace(0.9, 0.1, 20, dtype=np.float32)[None].repeat(n, axis=0)
    return Model(
        version=version,
        item_ids=ids,
        popularity=rng.integers(1, 50, n).astype(np.float32),
        first_seen_ms=np.full(n, 1.4e12),
        neighbour_items=same,
        neighbour_scores=scores,
        co_purchase_items=same[:, :5],
        co_purchase_scores=scores[:, :5],
        factors=near.astype(np.float32),
        content=content.astype(np.float32),
    )


def towers() -> TowerArrays:
    """Towers for the items of `model`: a history is close to its own kind, later items
    score higher. The last cable is unknown to them."""
    kind = np.repeat(np.eye(len(KINDS), dtype=np.float32), PER_KIND, axis=0)
    bias = np.linspace(0.0, 1.0, len(kind), dtype=np.float32)[:, None]
    targets = np.concatenate([4.0 * kind, bias], axis=1)
    targets[-1] = [0.0] * len(KINDS) + [UNKNOWN_BIAS]
    return TowerArrays(kind, targets)


def ncf() -> NcfArrays:
    """NCF for the items of `model`: as `towers`, and the MLP adds 0.5 to every second item."""
    kind = np.repeat(np.eye(len(KINDS), dtype=np.float32), PER_KIND, axis=0)
    hidden = np.zeros((len(kind), 2), np.float32)
    hidden[::2, 0] = 1.0
    layers = np.array([[1.0, 0.0, 0.0, 0.5]], np.float32)
    ages = np.ones(len(AGES_DAYS) + 1, np.float32)
    return NcfArrays(np.pad(kind, ((0, 0), (0, 2))), towers().targets, hidden, layers, ages)


def words(rank: int = 8) -> WordVectors:
    """Word vectors of the two kinds, each parallel to the items of its kind."""
    names = [name for kind in KINDS for name in (kind, f"{kind}s")]
    return WordVectors(
        np.array(names), np.eye(len(KINDS), rank, dtype=np.float32).repeat(2, axis=0)
    )


def write(settings: Settings, version: str, words: WordVectors | None = None) -> tuple[Path, str]:
    """The artifact of `model(version)`."""
    made = replace(model(version), words=words, ncf=ncf())

    return artifact.write(
        settings.artifacts,
        version,
        made.save,
        items=len(made),
        created=datetime.now(UTC).isoformat(),
        parameters=made.parameters(),
    )


def publish(settings: Settings, folder: Path, sha256: str) -> None:
    """Announce an artifact on the models topic."""
    data = ModelPublished(version=folder.name, uri=str(folder), manifest_sha256=sha256)
    event = ModelEvent(
        id=events.new_id(), source="test", time=events.now(), subject=folder.name, data=data
    )
    _send(settings, settings.kafka.topics.models, [("model", events.encode(event))])


def publish_items(settings: Settings, items: list[Item]) -> None:
    """Put items on the catalogue's topic."""
    rows = []
    for item in items:
        event = ItemEvent(
            id=events.new_id(), source="test", time=events.now(), subject=item.item_id, data=item
        )
        rows.append((item.item_id, events.encode(event)))
    _send(settings, settings.kafka.topics.items, rows)


def _send(settings: Settings, topic: str, rows: list[tuple[str, bytes]]) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap, "acks": "all"})
    for key, value in rows:
        producer.produce(topic, value, key)
    assert producer.flush(10) == 0

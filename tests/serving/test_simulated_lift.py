"""Simulated shoppers of a generated shop and a model of its reviews: the blend beats content alone
and decayed popularity, because a part of taste is only in co-purchases."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from afterclick import artifact, events
from afterclick.events import Action, Interaction
from afterclick.settings import Settings
from afterclick.tree_ranker import FILE
from ingest.click_model import LATENT_STRENGTH
from ingest.datasets import open_dataset
from ingest.generate import ShopConfig, generate_shop
from ingest.items import read_items
from ingest.rows import ReadReport
from ingest.simulation import Simulation, SimulationConfig, summary
from tests.serving import shop
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running
from tests.waiting import wait_until
from training.config import AlsConfig, ModelConfig, RankerConfig
from training.evaluation import reviews
from training.evaluation.reviews import Reviews
from training.fit import ModelTrainer
from training.models.als import implicit_als

SHOP = ShopConfig(days=400)
SHOPPERS, VISITS = 360, 12
VERSION = "of-the-shop"


def publish_model(settings: Settings, data: Reviews) -> None:
    """Fit a model and a ranker on the reviews, and announce them."""
    ranker = RankerConfig(cuts=1, horizon_days=40, queries=2000, trees=60)
    config = ModelConfig(AlsConfig(rank=16), ranker=ranker, towers=None, ncf=None)
    trainer = ModelTrainer(config, data.texts, implicit_als)
    model, trees = trainer.fit(data.log, VERSION).model, trainer.fit_ranker(data.log).trees

    def fill(folder: Path) -> None:
        model.save(folder)
        trees.write(folder / FILE)

    made = artifact.write(
        settings.artifacts,
        VERSION,
        fill,
        items=len(model),
        created=datetime.now(UTC).isoformat(),
        parameters=model.parameters(),
    )
    shop.publish(settings, *made)


def publish_reviews(settings: Settings, data: Reviews) -> None:
    log = data.log
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap, "enable.idempotence": True})
    for n, (user, item, time_ms) in enumerate(zip(log.user, log.item, log.time_ms, strict=True)):
        user_id, item_id = str(log.user_ids[user]), str(log.item_ids[item])
        event = events.interaction_event(
            Interaction(user_id=user_id, item_id=item_id, action=Action.REVIEW),
            event_id=events.stable_id("shop", n),
            time=datetime.fromtimestamp(int(time_ms) / 1000, UTC),
            source="test",
        )
        producer.produce(settings.kafka.topics.reviews, events.encode(event), user_id)
        producer.poll(0)
    assert producer.flush(60) == 0


@pytest.fixture
def learned_shop(settings: Settings, api: Running, stream: MiniStream, tmp_path: Path) -> Running:
    """The API of a generated shop, with its reviews and a model of them."""
    folder = tmp_path / "shop"
    end = datetime.now(UTC)
    generate_shop(folder, ShopConfig(**{**vars(SHOP), "end": end}))
    items = open_dataset(folder).items
    assert items is not None
    shop.publish_items(settings, list(read_items(items, ReadReport())))
    data = reviews.load(folder)
    publish_reviews(settings, data)
    publish_model(settings, data)
    wait_until(lambda: api.service.snapshots.current.loaded.version == VERSION)
    wait_until(lambda: len(api.service.catalogue) == SHOP.items)
    wait_until(lambda: int(api.service.snapshots.current.counts.sum()) == SHOP.events, 120)
    return api


def simulate(api: Running, latent: float, run: str) -> dict[str, Any]:
    plan = SimulationConfig(
        shoppers=SHOPPERS, visits=VISITS, content=True, latent=latent, run=run, seed=11
    )
    return summary(asyncio.run(Simulation(api.url, plan).run()))


@pytest.mark.long
@pytest.mark.slow
def test_the_blend_beats_content_alone_and_decayed_popularity_by_a_taste_that_is_latent(
    learned_shop: Running,
) -> None:
    found = simulate(learned_shop, LATENT_STRENGTH, "latent")
    assert found["lift_95"][0] > 0, found
    assert found["content_lift_95"][0] > 0, found
    # control: without the latent part, content alone knows as much of a taste
    plain = simulate(learned_shop, 0.0, "plain")
    assert plain["content_lift_95"][1] < found["content_lift"], (plain, found)

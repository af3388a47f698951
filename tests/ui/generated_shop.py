"""A small generated shop: items and reviews, published on the topics like the ingest does."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from confluent_kafka import Producer

from afterclick import events
from afterclick.events import Action, Interaction, Item, ItemEvent
from afterclick.settings import Settings

CATEGORIES: dict[tuple[str, ...], tuple[str, str]] = {
    ("Electronics", "Camera & Photo", "Lenses"): ("Kestrel", "prime lens"),
    ("Electronics", "Computers & Accessories", "Case Fans"): ("Northwind", "quiet fan"),
    ("Electronics", "Headphones", "Over-Ear Headphones"): ("Quietude", "headphones"),
    ("Electronics", "GPS & Navigation", "Handheld"): ("Waymark", "GPS"),
    ("Electronics", "Television & Video", "Remote Controls"): ("Bigkey", "remote"),
}


@dataclass(frozen=True)
class GeneratedShop:
    """The published items, and the number of reviews."""

    items: tuple[Item, ...]
    reviews: int


def publish_shop(
    settings: Settings, n_items: int = 60, n_reviews: int = 600, seed: int = 7
) -> GeneratedShop:
    """Publish a catalogue, a fifth of it without titles, and reviews with a long tail."""
    rng = random.Random(seed)
    kinds = list(CATEGORIES)
    items = tuple(_item(n, kinds[n % len(kinds)]) for n in range(n_items))
    start = datetime.now(UTC) - timedelta(hours=2)
    failures: list[object] = []
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap, "enable.idempotence": True})

    def report(error: object, _: object) -> None:
        if error is not None:
            failures.append(error)

    topics = settings.kafka.topics
    for item in items:
        event = ItemEvent(
            id=events.new_id(), source="test", time=start, subject=item.item_id, data=item
        )
        producer.produce(topics.items, events.encode(event), item.item_id, on_delivery=report)
    for n in range(n_reviews):
        item = items[min(int(rng.paretovariate(0.8)) - 1, n_items - 1)]
        interaction = Interaction(
            user_id=f"shopper-{rng.randrange(80)}", item_id=item.item_id, action=Action.REVIEW
        )
        review = events.interaction_event(
            interaction,
            event_id=events.stable_id("shop", seed, n),
            time=start + timedelta(seconds=10 * n),
            source="test",
        )
        producer.produce(
            topics.reviews, events.encode(review), interaction.user_id, on_delivery=report
        )
        producer.poll(0)
    assert producer.flush(30) == 0
    assert not failures, failures
    return GeneratedShop(items, n_reviews)


def _item(n: int, path: tuple[str, ...]) -> Item:
    brand, thing = CATEGORIES[path]
    title = None if n % 5 == 4 and n > 5 else f"{brand} {thing} {n}"
    return Item(item_id=f"G{n:04d}", title=title, categories=path, brand=brand, price=10.0 + n)

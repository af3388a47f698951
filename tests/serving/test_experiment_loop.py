"""Experiments end to end: simulated shoppers, the better arm, and no difference between equals."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from afterclick import events
from afterclick.events import ImpressionEvent, Item
from afterclick.settings import Settings
from ingest.simulation import Simulation, SimulationConfig
from tests.serving import shop
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running
from tests.serving.test_experiments import DECIDED_BY, TWO_ARMS
from tests.waiting import wait_until

KINDS, PER_KIND = 12, 20
CATALOGUE = [
    Item(item_id=f"i{n}", title=f"Item {n}", categories=("Everything", f"kind {n % KINDS}"))
    for n in range(KINDS * PER_KIND)
]
EQUAL, LEVEL = 0.999, 0.95
"""Confidence levels: stricter for equal arms, so that a false alarm is rare."""
VISITS = 10
FEW, MANY = 160, 960
"""Numbers of users: for equal arms, and enough to detect the planted difference (z > 4)."""


@pytest.fixture
def mall(settings: Settings, api: Running, stream: MiniStream) -> Running:
    """The API with a catalogue of many kinds, and something that is popular."""
    shop.publish_items(settings, CATALOGUE)
    wait_until(lambda: len(api.service.catalogue) == len(CATALOGUE))
    wait_until(lambda: api.service.control.available)
    for n in range(40):
        api.feedback(f"early-{n}", f"i{n}", "click")
    wait_until(lambda: int(api.service.snapshots.current.counts.sum()) == 40)
    return api


def experiment(api: Running, name: str, *arms: dict[str, Any]) -> None:
    plan = {"users": MANY // 2}
    draft = {"name": name, "salt": name, "metric": "clicks_per_user", "plan": plan}
    response = api.http.post("/experiments", json={**draft, "arms": list(arms)})
    assert response.status_code == 201, response.text


def shop_for(api: Running, run: str, shoppers: int = FEW, visits: int = VISITS) -> None:
    """Simulated shoppers request lists from the API, which assigns their arm.

    Without a latent taste: there are no reviews here that would reflect one.
    """
    asyncio.run(
        Simulation(
            api.url,
            SimulationConfig(shoppers=shoppers, visits=visits, control=False, latent=0.0, run=run),
        ).run()
    )


def results(api: Running, name: str, level: float) -> dict[str, Any]:
    """The results with every action so far counted."""
    now = events.now()

    def complete() -> dict[str, Any] | None:
        found = api.get(f"/experiments/{name}", level=level)
        until = found["counted_until"]
        return found if until and datetime.fromisoformat(until) > now else None

    return wait_until(complete)


def impressions(settings: Settings, name: str, count: int) -> list[ImpressionEvent]:
    """The first impressions of an experiment on Kafka."""
    consumer = Consumer({"bootstrap.servers": settings.kafka.bootstrap, "group.id": "none"})
    topic = settings.kafka.topics.impressions
    consumer.assign([TopicPartition(topic, p, 0) for p in range(settings.kafka.partitions)])
    found: list[ImpressionEvent] = []

    def enough() -> bool:
        for message in consumer.consume(500, 0.2):
            event = events.decode(message.value())
            if isinstance(event, ImpressionEvent) and event.data.experiment == name:
                found.append(event)
        return len(found) >= count

    wait_until(enough)
    consumer.close()
    return found


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_better_arm_is_found_and_equal_arms_show_no_difference(
    mall: Running, settings: Settings
) -> None:
    experiment(mall, "a-a", {"name": "one"}, {"name": "two"})
    shop_for(mall, "equals")
    assert mall.http.post("/experiments/a-a/stop").json()["stopped"]
    experiment(mall, "a-b", {"name": "popular", "policy": "popular"}, {"name": "blend"})
    shop_for(mall, "unequal", MANY)

    equal = results(mall, "a-a", EQUAL)
    assert equal["running"] is False
    assert equal["sample_ratio"]["broken"] is False
    assert sum(arm["lists"] for arm in equal["arms"]) == FEW * VISITS
    difference = equal["arms"][1]["difference"]
    assert difference["low"] < 0 < difference["high"]
    assert equal["arms"][1]["decision"] == "open"

    found = results(mall, "a-b", LEVEL)
    assert found["sample_ratio"]["broken"] is False
    assert [arm["policy"] for arm in found["arms"]] == ["popular", "blend"]
    assert found["arms"][0]["difference"] is None
    better = found["arms"][1]
    assert better["difference"]["low"] > 0, found
    assert better["p_value"] < 1 - LEVEL
    assert better["decision"] == "better"
    assert better["clicks_per_user"] > found["arms"][0]["clicks_per_user"]

    logged = impressions(settings, "a-b", MANY * VISITS)
    arms = {(e.data.arm, e.data.policy) for e in logged}
    assert arms == {("popular", "popular"), ("blend", "blend")}
    by_user = Counter((e.data.user_id, e.data.arm) for e in logged)
    assert len(by_user) == MANY, "a user was in two arms"


def test_an_experiment_changes_lists_until_it_is_stopped(mall: Running) -> None:
    before = mall.list_for("zoe", n=5, interests=["kind 3"])
    assert before["source"] == "interests"
    assert "experiment" not in before
    experiment(mall, "popular-for-all", *({"name": n, "policy": "popular"} for n in ("a", "b")))
    during = mall.list_for("zoe", n=5, interests=["kind 3"])
    assert during["source"] == "popular"
    assert during["experiment"]["name"] == "popular-for-all"
    assert "experiment" not in mall.get("/recommendations", n=5), "no user, no experiment"
    again = {"name": "popular-for-all", **DECIDED_BY, "arms": TWO_ARMS}
    taken = mall.http.post("/experiments", json=again)
    assert taken.status_code == 409
    mall.http.post("/experiments/popular-for-all/stop")
    assert mall.list_for("zoe", n=5, interests=["kind 3"])["source"] == "interests"
    assert [e["name"] for e in mall.get("/experiments")["experiments"]] == ["popular-for-all"]
    assert mall.http.get("/experiments/none").status_code == 404
    assert mall.http.post("/experiments/none/stop").status_code == 404

"""The typed client against the real API."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from afterclick.api import Accepted
from afterclick.errors import BadInput, Unavailable
from afterclick.io.client import AsyncClient, Client
from infra.embedded.kafka import KafkaServer, ensure_topics
from infra.embedded.server import free_port
from tests.serving.running import Running, installation
from tests.waiting import wait_until


def test_a_like_is_in_the_next_list(shop_api: Running) -> None:
    with Client(shop_api.url) as client:
        accepted = client.feedback("ned", "camera-4", "like", rating=5)
        mine = client.recommendations("ned", 5, after=accepted.position)
        assert mine.fresh
        assert mine.source == "personalised"
        assert [item.item_id.split("-")[0] for item in mine.items] == ["camera"] * 5
        assert client.recommendations(items=["cable-1"], category="cables").source == "session"
        first = client.recommendations("ned", 5, cursor="*", filters=["category:cameras"])
        second = client.recommendations("ned", 5, cursor=first.next, explore=0.5, diversity=0.5)
        assert not {item.item_id for item in first.items} & {item.item_id for item in second.items}
        assert {item.propensity for item in second.items} < {0.5, *(0.5 / n for n in range(1, 11))}
        assert [found.user_id for found in client.batch(["ned", "ola"]).lists] == ["ned", "ola"]
        assert len(client.similar("camera-1", 3).items) == 3
        wait_until(lambda: [row.item_id for row in client.popular(1).items] == ["camera-4"])
        assert client.item("camera-4").title == "The camera-4"
        assert {item.item_id for item in client.search("camera-4", 3).items} == {"camera-4"}
        assert {row.category for row in client.categories().categories} >= {"Cameras", "Cables"}
        assert client.get("/health/live")["status"]
        assert client.history("ned").events[0].rating == 5


def test_the_client_returns_attributions_and_earlier_impressions(shop_api: Running) -> None:
    with Client(shop_api.url) as client:
        after = client.feedback("ron", "camera-4", "like").position
        mine = client.recommendations("ron", 5, after=after, explain=True)
        causes = mine.items[0].attributions
        assert causes is not None
        assert [(cause.item_id, cause.action) for cause in causes] == [("camera-4", "like")]
        assert mine.impression_id is not None
        shown = client.explain(mine.impression_id)
        assert [item.item_id for item in shown.items] == [item.item_id for item in mine.items]
        assert shown.items[0].contributions == mine.items[0].contributions
        with pytest.raises(BadInput, match="impression"):
            client.explain("unknown")


def test_a_session_without_an_account_sends_feedback(shop_api: Running) -> None:
    with Client(shop_api.url) as client:
        after = client.feedback(None, "cable-3", "like", session_id="v1").position
        assert client.recommendations(session_id="v1", after=after).source == "session"


def test_the_async_client_has_the_same_calls(shop_api: Running) -> None:
    async def talk() -> None:
        async with AsyncClient(shop_api.url) as client:
            accepted = await client.feedback("pia", "cable-4", "purchase")
            mine = await client.recommendations("pia", 5, after=accepted.position)
            assert mine.source == "personalised"
            assert (await client.history("pia")).events[0].event_id == accepted.event_id
            assert (await client.batch(["pia"])).lists[0].user_id == "pia"
            assert (await client.similar("cable-1")).items
            assert (await client.popular(window="hour")).items is not None
            assert (await client.item("cable-1")).in_model

    asyncio.run(talk())


def test_a_rejected_request_and_an_unreachable_api_differ(
    hostile_api: Running,
) -> None:
    with Client(hostile_api.url) as client, pytest.raises(BadInput, match="no item nothing"):
        client.item("nothing")
    with Client(hostile_api.url) as client, pytest.raises(BadInput, match="n: "):
        client.recommendations("bob", 0)
    with (
        Client(f"http://127.0.0.1:{free_port()}") as client,
        pytest.raises(Unavailable, match="no answer"),
    ):
        client.popular()


def test_feedback_is_retried_with_the_same_event_id(
    own_broker: KafkaServer, redis_url: str, tmp_path: Path
) -> None:
    settings = installation(own_broker.address, redis_url, tmp_path)
    ensure_topics(settings)
    with Running(settings) as api, Client(api.url, timeout_s=10) as client:
        api.ready()
        own_broker.kill()
        with pytest.raises(Unavailable, match="once"):
            client.feedback("quin", "camera-1", "like", event_id="once")
        own_broker.start()
        accepted = wait_until(lambda: _try(client))
        assert accepted.position.startswith(settings.kafka.topics.feedback)
        assert accepted.event_id == "once"


def _try(client: Client) -> Accepted | None:
    try:
        return client.feedback("quin", "camera-1", "like", event_id="once")
    except Unavailable:
        return None

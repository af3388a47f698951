"""`afterclick off-policy` on logged topics."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest
from confluent_kafka import Producer
from typer.testing import CliRunner

from afterclick.api import Policy
from afterclick.errors import BadInput, NotFound
from afterclick.events import VISITOR, Action, Impression, ImpressionEvent, ShownItem, encode
from afterclick.io.forgotten import publish_forgotten
from afterclick.settings import Settings, StreamSettings
from infra.cli import app
from tests.training import shop
from training import etl, logged_lists, off_policy
from training.off_policy import NoSupport, OffPolicyRequest
from training.pipeline import Pipeline

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark
ITEMS, EXPLORE = 12, 0.5
APPEAL = np.array([0.6, 0.4, *[0.05] * (ITEMS - 2)])
"""P(click) at the first rank; half of it at the second, as with a decay of 1."""


def shown(
    impression_id: str, user_id: str, rows: list[tuple[str, float]], day: float
) -> ImpressionEvent:
    """A list of items and propensities."""
    items = tuple(
        ShownItem(item_id=item, score=1.0, source="als", propensity=propensity)
        for item, propensity in rows
    )
    return ImpressionEvent(
        id=impression_id,
        source="/test",
        time=shop.START + timedelta(days=day),
        subject=user_id,
        data=Impression(
            impression_id=impression_id,
            user_id=user_id,
            items=items,
            model_version="m1",
            source="personalised",
        ),
    )


def publish(settings: Settings, lists: list[ImpressionEvent]) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap})
    for event in lists:
        producer.produce(settings.kafka.topics.impressions, encode(event), event.subject.encode())
    assert producer.flush(30) == 0


def click(event: ImpressionEvent, item: str, **changes: Any) -> dict[str, Any]:
    day = (event.time - shop.START) / timedelta(days=1) + 0.0001
    row = {"action": "click", "impression_id": event.data.impression_id, **changes}
    return {**shop.event(event.data.user_id, item, day), **row}


def history() -> list[dict[str, Any]]:
    """Item 0 is the most popular one, item 1 the next, and so on."""
    buyers = [(n, item) for item in range(ITEMS) for n in range(200 - 15 * item)]
    return [shop.event(f"buyer{n}", f"i{item}") for n, item in buyers]


def lists_of_new_users(n: int) -> tuple[list[ImpressionEvent], list[dict[str, Any]]]:
    """Lists of two: the least popular items, and alternatives dealt in turn, as serving does."""
    rng = np.random.default_rng(5)
    lists, clicks = [], []
    for user in range(n):
        rows, clicked = [], []
        for rank in (0, 1):
            alternatives = range(ITEMS - 3 - rank, -1, -2)
            item, propensity = ITEMS - 1 - rank, 1 - EXPLORE
            if rng.random() < EXPLORE:
                item = int(rng.choice(alternatives))
                propensity = EXPLORE / len(alternatives)
            rows.append((f"i{item}", propensity))
            if rng.random() < APPEAL[item] / (rank + 1):
                clicked.append(f"i{item}")
        event = shown(f"list{user}", f"u{user}", rows, 1 + user / n)
        lists.append(event)
        clicks += [click(event, item) for item in clicked]
    return lists, clicks


@pytest.fixture
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings as the command reads them."""
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    return settings


def command(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["off-policy", *arguments, "--json"])
    if result.exception is not None:
        raise result.exception
    answer: dict[str, Any] = orjson.loads(result.stdout.splitlines()[-1])
    return answer


@pytest.mark.slow
def test_the_command_estimates_a_policy_from_the_topics(
    spark: SparkSession, environment: Settings
) -> None:
    lists, clicks = lists_of_new_users(1500)
    plain = shown("plain", "u0", [("i0", 1.0), ("i1", 1.0)], 1.5)
    late = shown("late", "u0", [("i0", 0.5), ("i1", 0.5)], 3.0)  # the log ends with it
    nobody = shown("nobody", VISITOR, [("i0", 0.5), ("i1", 0.5)], 1.5)
    forgotten = shown("forgotten", "gone", [("i0", 0.5), ("i1", 0.5)], 1.5)
    publish(environment, [*lists, lists[0], plain, late, nobody, forgotten])
    stranger = click(lists[1], lists[1].data.items[0].item_id, user_id="stranger")
    shop.write_log(
        environment.archive, [*history(), *clicks, stranger, shop.event("u0", "i5", 3.0)]
    )
    publish_forgotten(environment.kafka, "gone", round(forgotten.time.timestamp() * 1000) + 1)
    etl.run(spark, environment)

    answer = command("--policy", "popular", "--decay", "1")
    assert {"policy", "estimates", "support"} <= set(answer)
    assert (answer["policy"], answer["model"]) == ("popular", None)
    assert (answer["lists"], answer["users"]) == (1500, 1500)
    assert answer["support"] > 0.9
    assert answer["logged"]["value"] == pytest.approx(len(clicks) / len(lists))
    assert set(answer["estimates"]) == {"ips", "snips", "doubly_robust"}
    truth = APPEAL[0] + APPEAL[1] / 2
    for estimate in answer["estimates"].values():
        low, high = estimate["interval"]
        assert low < truth < high
        assert low < estimate["value"] < high
        assert low > answer["logged"]["interval"][1]
        assert estimate["ess"] > 100

    assert (
        command("--policy", "popular", "--decay", "1", "--reward", "purchase")["logged"]["value"]
        == 0.0
    )
    text = CliRunner().invoke(app, ["off-policy", "--policy", "popular", "--decay", "1"]).stdout
    assert "doubly_robust" in text
    # item 0 comes up at the second rank only, item 1 at the first one
    with pytest.raises(NoSupport, match=r"could have shown \d% of the target's items"):
        command("--policy", "popular")
    with pytest.raises(NoSupport, match="effective sample size"):
        command("--policy", "popular", "--decay", "1", "--min-ess", "1e6")
    with pytest.raises(NotFound, match="no model is served yet"):
        command("--policy", "als")
    with pytest.raises(NotFound, match="no holdout model of 'unknown'"):
        command("--model", "unknown")


def test_a_log_without_exploration_is_refused(spark: SparkSession, settings: Settings) -> None:
    publish(settings, [shown("plain", "u0", [("i0", 1.0)], 0.5)])
    shop.write_log(settings.archive, [*history(), shop.event("u0", "i0", 1.0)])
    etl.run(spark, settings)
    with pytest.raises(NoSupport, match="no list of a user in the period"):
        off_policy.run(settings, OffPolicyRequest(Policy.TRENDING), lambda _: None)


def test_reactions_are_those_of_the_lists_without_undone_ones(
    spark: SparkSession, settings: Settings
) -> None:
    first, other = (shown(name, "u", [("i0", 0.5), ("i1", 0.5)], 0.5) for name in ("a", "b"))
    rows = [
        click(first, "i0"),
        click(first, "i0", action="purchase"),
        click(first, "i1"),
        click(first, "i2", action="view"),
        click(other, "i3"),
        shop.event("u", "i1", 0.9, action="undo"),
        shop.event("u", "i4", 0.5),
    ]
    shop.write_log(settings.archive, rows)
    version, _ = etl.run(spark, settings)
    folder = settings.home / "etl" / version
    found = logged_lists.reactions(folder, ["a"], StreamSettings().reactions)
    assert found == {("a", "u", "i0")}
    assert logged_lists.reactions(folder, ["a", "b"], [Action.CLICK]) == {
        ("a", "u", "i0"),
        ("b", "u", "i3"),
    }


@pytest.mark.slow
def test_a_model_is_asked_through_its_holdout_model_after_its_cut(pipeline: Pipeline) -> None:
    """Users click items of their own half of the catalogue, which the model has learned."""
    settings = pipeline.settings
    shop.write_log(settings.archive, shop.drifting_events())
    _, _, published = pipeline.run_all()
    rng = np.random.default_rng(2)
    lists, clicks = [], []
    for n in range(1200):
        user, items = n % 300, (6 * rng.integers(10, size=6) + np.arange(6)).tolist()
        day = 1.0 if n < 300 else 118.0  # the model has seen the first day
        event = shown(f"list{n}", f"u{user}", [(f"i{i}", 0.1) for i in items], day)
        lists.append(event)
        liked = {f"i{i}" for i in items if i % 2 == user % 2}
        clicks += [click(event, item) for item in liked if rng.random() < 0.5]
    publish(settings, lists)
    shop.write_log(
        settings.archive, [*clicks, shop.event("u0", "i0", 119.99)], log_day="2026-01-02"
    )
    pipeline.etl()

    def estimate(model: str | None, policy: Policy) -> off_policy.OffPolicyReport:
        request = OffPolicyRequest(policy, model, decay=0.0)
        return off_policy.run(settings, request, lambda _: None)

    for policy in (Policy.BLEND, Policy.ALS):
        report = estimate(published.version, policy)
        assert (report.policy, report.model) == (policy, published.version)
        assert report.lists == 900
        assert report.estimates["snips"].value > report.logged.interval[1]
    assert estimate(None, Policy.BLEND) == estimate("champion", Policy.BLEND)
    with pytest.raises(BadInput, match="trending needs no --model"):
        estimate(published.version, Policy.TRENDING)
    assert estimate(None, Policy.TRENDING).model is None


def test_what_to_estimate_must_be_named() -> None:
    with pytest.raises(BadInput, match="--policy, --model or both"):
        command()
    with pytest.raises(BadInput, match="--policy 'best': expected one of blend, trending"):
        command("--policy", "best")
    with pytest.raises(BadInput, match="--reward 'view': expected one of click"):
        command("--policy", "trending", "--reward", "view")

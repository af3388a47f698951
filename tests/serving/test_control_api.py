"""Rules over HTTP: stored, in force, in the contributions, deleted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from afterclick.settings import ServingSettings, Settings
from serving.rerank import PINNED
from tests.serving.running import Running
from tests.waiting import wait_until


def add(api: Running, **rule: Any) -> dict[str, Any]:
    wait_until(lambda: api.service.control.available)
    response = api.http.post("/rules", json=rule)
    assert response.status_code == 201, response.text
    kept: dict[str, Any] = response.json()
    return kept


def test_a_rule_takes_effect_is_listed_and_ends_with_its_removal(shop_api: Running) -> None:
    natural = [item["item_id"] for item in shop_api.list_for("newcomer", n=10)["items"]]
    chosen = next(i for i in ("cable-20", "cable-21") if i not in natural)
    rule = add(shop_api, action="pin", query=[f"item:{chosen}"], position=2, note="a present")
    assert rule["in_force"]

    def second() -> dict[str, Any]:
        row: dict[str, Any] = shop_api.list_for("newcomer")["items"][1]
        return row

    wait_until(lambda: second()["item_id"] == chosen)
    assert second()["reason"] == PINNED
    assert "rules" in second()["contributions"]
    assert [r["rule_id"] for r in shop_api.get("/rules")["rules"]] == [rule["rule_id"]]
    assert shop_api.http.delete(f"/rules/{rule['rule_id']}").json() == {"removed": rule["rule_id"]}
    wait_until(lambda: second()["item_id"] != chosen)
    assert shop_api.http.delete(f"/rules/{rule['rule_id']}").status_code == 404


def test_an_ended_rule_is_listed_as_not_in_force(shop_api: Running) -> None:
    ended = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    rule = add(shop_api, action="exclude", query=["category:Cameras"], ends=ended)
    assert rule["in_force"] is False
    assert any(i["item_id"].startswith("camera") for i in shop_api.list_for("x", n=50)["items"])


def test_excluded_items_are_neither_similar_nor_popular(shop_api: Running) -> None:
    shop_api.feedback("bob", "camera-5")
    lists = (("/similar-items", {"item_id": "camera-2", "n": 20}), ("/popular", {"n": 20}))

    def ids() -> set[str]:
        return {
            item["item_id"]
            for path, query in lists
            for item in shop_api.get(path, **query)["items"]
        }

    wait_until(lambda: "camera-5" in {i["item_id"] for i in shop_api.get("/popular")["items"]})
    inside = shop_api.get("/similar-items", item_id="camera-2", n=20, filters=["title:camera-5"])
    assert [item["item_id"] for item in inside["items"]] == ["camera-5"]
    outside = shop_api.get("/popular", category="cables", filters=["title:camera-5"])
    assert outside["items"] == []
    add(shop_api, action="exclude", query=["item:camera-5"])
    wait_until(lambda: "camera-5" not in ids())


def test_another_process_applies_a_rule(settings: Settings, shop_api: Running) -> None:
    wait_until(lambda: shop_api.service.control.available)
    with Running(settings) as other:
        rule = add(other, action="exclude", query=["item:camera-1"])
        wait_until(lambda: [r.rule_id for r in shop_api.service.control.rules] == [rule["rule_id"]])
        wait_until(lambda: len(shop_api.service.snapshots.current.rules.excluded) == 1)


@pytest.mark.parametrize(
    "wrong",
    [{"action": "boost"}, {"action": "boost", "query": ["nonsense"]}, {"query": ["item:a"]}],
)
def test_an_invalid_rule_is_rejected_with_a_reason(
    hostile_api: Running, wrong: dict[str, Any]
) -> None:
    response = hostile_api.http.post("/rules", json=wrong)
    assert response.status_code == 422
    assert response.json()["errors"]


def test_without_its_database_rules_are_read_only_and_lists_still_work(
    settings: Settings,
) -> None:
    serving = ServingSettings(database="postgresql://user@127.0.0.1:1/absent", open=True)
    with Running(settings.model_copy(update={"serving": serving})) as api:
        response = api.http.post("/rules", json={"action": "exclude", "query": ["item:a"]})
        assert response.status_code == 503
        assert response.headers["retry-after"]
        assert api.http.delete("/rules/r").status_code == 503
        assert api.get("/rules") == {"rules": []}
        assert api.list_for("bob")["items"] == []

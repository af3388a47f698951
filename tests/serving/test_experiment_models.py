"""Arms of experiments with different models: served together, bounded, with a fallback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx2
import pytest

from afterclick.settings import Settings
from serving.state.loaded_models import MAX_EXTRA_MODELS, LoadedModel, ModelFeed, ModelStore
from tests.serving import shop
from tests.serving.running import Running, after
from tests.serving.test_experiments import DECIDED_BY
from tests.waiting import wait_until


def create(api: Running, name: str, *arms: dict[str, Any]) -> httpx2.Response:
    draft = {"name": name, "salt": name, **DECIDED_BY, "arms": list(arms)}
    return api.http.post("/experiments", json=draft)


def shown(api: Running, users: range = range(20)) -> dict[str, tuple[str, str | None]]:
    """Arm → model version and fallback of its users' lists; empty if lists of an arm differ."""
    found: dict[str, tuple[str, str | None]] = {}
    for n in users:
        body = api.list_for(f"user-{n}", n=3)
        assigned = body["experiment"]
        served = (body["model_version"], assigned.get("fallback"))
        if found.setdefault(assigned["arm"], served) != served:
            return {}  # a model arrived between two lists
    return found


def test_two_models_serve_together_and_a_missing_one_is_reported(
    shop_api: Running, settings: Settings
) -> None:
    shop.publish(settings, *shop.write(settings, "m2"))
    wait_until(lambda: shop_api.service.snapshots.current.loaded.version == "m2")
    after(shop_api, "user-1", shop_api.feedback("user-1", "camera-1"))
    served = create(shop_api, "old-new", {"name": "old", "model": "m1"}, {"name": "new"})
    assert served.status_code == 201, served.text
    wait_until(lambda: shown(shop_api) == {"old": ("m1", None), "new": ("m2", None)})
    rules = shop_api.http.post("/rules", json={"action": "exclude", "query": ["category:Cameras"]})
    assert rules.status_code == 201

    def cables_alone() -> bool:
        lists = (shop_api.list_for(f"user-{n}", n=50)["items"] for n in range(8))
        return all(item["item_id"].startswith("cable") for items in lists for item in items)

    wait_until(cables_alone, what="rules apply to each model")
    shop.publish(settings, *shop.write(settings, "m3"))
    wait_until(lambda: shown(shop_api) == {"old": ("m1", None), "new": ("m3", None)})

    shop_api.http.post("/experiments/old-new/stop")
    create(shop_api, "none", {"name": "gone", "model": "never"}, {"name": "m3", "model": "m3"})
    missing = "model never: "

    def with_fallback() -> dict[str, tuple[str, str | None]] | None:
        arms = shown(shop_api)
        return arms if arms and (arms["gone"][1] or "").startswith(missing) else None

    arms = wait_until(with_fallback, what="the fallback is reported")
    assert (arms["gone"][0], arms["m3"]) == ("m3", ("m3", None))
    wait_until(
        lambda: shop_api.service.snapshots.of("m1").loaded.version == "m3", what="m1 is released"
    )


@pytest.mark.parametrize("version", ["../m1", ".m1", "a/b", "", "-v"])
def test_a_version_that_contains_a_path_is_rejected(hostile_api: Running, version: str) -> None:
    assert (
        create(hostile_api, "e", {"name": "a", "model": version}, {"name": "b"}).status_code == 422
    )


def test_the_number_of_loaded_models_is_bounded(settings: Settings) -> None:
    versions = [f"m{n}" for n in range(MAX_EXTRA_MODELS + 1)]
    for version in versions:
        shop.write(settings, version)
    handed: list[Mapping[str, LoadedModel]] = []
    feed = ModelFeed(
        print, handed.append, ModelStore(str(settings.artifacts), settings.home / "fetched")
    )
    feed.request(versions)
    feed.start()
    try:
        wait_until(lambda: handed and len(handed[-1]) == MAX_EXTRA_MODELS)
        assert list(handed[-1]) == versions[:MAX_EXTRA_MODELS]
        assert "at most" in feed.unavailable_reason(versions[-1])
        feed.request(versions[-1:])
        wait_until(lambda: list(handed[-1]) == versions[-1:])
        feed.request([])
        wait_until(lambda: handed[-1] == {})
    finally:
        feed.stop()

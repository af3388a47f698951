"""Policies: every ranking policy with every other option of a request."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from afterclick.api import Policy, Tier
from afterclick.errors import BadInput
from afterclick.events import Action, Item
from afterclick.io.client import Client
from afterclick.model import Model
from afterclick.settings import StreamSettings
from afterclick.user_vectors import UserState, fold_in, ncf_user, tower_user
from serving.control.rules import RuleDraft
from serving.request import PLAIN, Options, Page, RecommendationRequest
from tests.serving import shop
from tests.serving.offline import Offline
from tests.serving.running import Running, after
from tests.serving.test_experiments import DECIDED_BY
from tests.waiting import wait_until

LIKED = {"ann": ["camera-3", "cable-1", "camera-5"]}
ALONE = (Policy.ALS, Policy.TWO_TOWER, Policy.NCF, Policy.CONTENT)


def a_model() -> Model:
    return dataclasses.replace(shop.model("m1"), towers=shop.towers(), ncf=shop.ncf())


def an_offline(**changes: Any) -> Offline:
    options: dict[str, Any] = {"liked": LIKED, "model": a_model(), **changes}
    return Offline(**options)


def only(policy: Policy, **more: Any) -> Options:
    return dataclasses.replace(PLAIN, policy=policy, **more)


def scores_of(policy: Policy, model: Model, liked: list[str], now_ms: float) -> dict[str, float]:
    """The model's score of each of its items for a history."""
    items = np.array([model.index[item] for item in liked], np.int32)
    weights = np.full(len(items), StreamSettings().weights[Action.LIKE], np.float32)
    state = UserState(
        items,
        weights,
        (now_ms - 60_000.0 * np.arange(len(items))).astype(np.float64),
        items,
        now_ms,
    )
    if policy is Policy.ALS:
        user, vectors = fold_in(model, state), model.factors
    elif policy is Policy.CONTENT:
        assert model.content is not None
        ranks = np.arange(1, len(items) + 1, dtype=np.float32)[:, None]
        user, vectors = (model.content[items] / ranks).sum(axis=0), model.content
    elif policy is Policy.NCF:
        user = ncf_user(model, state)
        assert user is not None
        every = np.arange(len(model) - 1, dtype=np.int32)
        return dict(zip(model.item_ids.tolist(), shop.ncf().scores(user, every), strict=False))
    else:
        user, vectors = tower_user(model, state), shop.towers().targets[:-1]
    assert user is not None
    assert vectors is not None
    return dict(zip(model.item_ids.tolist(), (vectors @ user).tolist(), strict=False))


@pytest.mark.parametrize("policy", ALONE)
def test_a_single_model_policy_lists_its_highest_scores_without_seen_items(policy: Policy) -> None:
    served = an_offline()
    rows = served.items("ann", 20, options=only(policy))
    scores = scores_of(policy, a_model(), LIKED["ann"], served.snapshot.now_ms)
    best = sorted(
        (item for item in scores if item not in LIKED["ann"]), key=lambda item: -scores[item]
    )
    assert [row["item_id"] for row in rows] == best[:20]
    assert {row["source"] for row in rows} == {{"two_tower": "tower"}.get(policy, policy)}
    for row in rows:
        assert row["contributions"] == {"model": pytest.approx(scores[row["item_id"]], abs=1e-5)}
    answer = served.answer(RecommendationRequest("ann", 5, options=only(policy)))
    assert (answer.body["source"], answer.policy) == ("personalised", policy)


def test_policies_differ() -> None:
    served = an_offline()
    lists = {tuple(served.ids("ann", 10, options=only(policy))) for policy in Policy}
    assert len(lists) >= len(Policy) - 1, "only trending and popular may agree"


@pytest.mark.parametrize("policy", list(Policy))
@pytest.mark.parametrize("user_id", ["", "ann", "unknown"])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"exclude": ("camera-1", "cable-28", "camera-29")},
        {"category": "Cables"},
        {"filters": ("item:camera-7", "item:cable-7", "item:camera-3")},
        {"items": ("cable-9",)},
        {"interests": ("Cables",)},
        {"explain": True},
        {"page": Page(7)},
        {"options": {"diversity": 0.7}},
        {"options": {"explore": 0.5}},
        {"options": {"weights": (("model", 0.5), ("trend", 2.0))}},
    ],
    ids=lambda asked: "-".join(asked) or "plain",
)
def test_every_policy_supports_every_option(
    policy: Policy, user_id: str, asked: dict[str, Any]
) -> None:
    asked = {**asked, "options": only(policy, **asked.get("options", {}))}
    served = an_offline()
    rows = served.items(user_id, 10, **asked)
    ids = [row["item_id"] for row in rows]
    assert len(ids) == (
        2 if "filters" in asked and user_id == "ann" else 3 if "filters" in asked else 10
    )
    assert not set(ids) & {
        *LIKED.get(user_id, ()),
        *asked.get("exclude", ()),
        *asked.get("items", ()),
    }
    if "category" in asked:
        assert all(item.startswith("cable-") for item in ids)


@pytest.mark.parametrize("policy", list(Policy))
def test_rules_apply_to_every_policy(policy: Policy) -> None:
    served = an_offline()
    first = served.ids("ann", 1, options=only(policy))[0]
    drafts: list[dict[str, Any]] = [
        {"action": "exclude", "query": [f"item:{first}"]},
        {"action": "pin", "query": ["item:cable-29"], "position": 3},
        {"action": "boost", "query": ["item:cable-17"], "amount": 1000},
    ]
    served.decide(*(RuleDraft.model_validate(draft) for draft in drafts))
    rows = served.items("ann", 6, options=only(policy))
    ids = [row["item_id"] for row in rows]
    assert first not in ids
    assert ids[0] == "cable-17"
    assert rows[0]["contributions"]["rules"] == 1000
    assert ids[2] == "cable-29"


@pytest.mark.parametrize("policy", ALONE)
def test_pages_of_a_single_model_policy_repeat_no_item_and_end(policy: Policy) -> None:
    served = an_offline()
    first = served.ids("ann", 20, options=only(policy), page=Page(paginate=True))
    second = served.ids(
        "ann", 20, options=only(policy), page=Page(shown=tuple(first), paginate=True)
    )
    third = served.ids(
        "ann", 20, options=only(policy), page=Page(shown=(*first, *second), paginate=True)
    )
    everything = [*first, *second, *third]
    assert len(everything) == len(set(everything)) == 57
    assert first + second == served.ids("ann", 40, options=only(policy))


@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        (Policy.TWO_TOWER, {"model": shop.model("m1")}),
        (Policy.NCF, {"model": shop.model("m1")}),
        (Policy.ALS, {"model": dataclasses.replace(a_model(), factors=None)}),
        (Policy.CONTENT, {"model": dataclasses.replace(a_model(), content=None)}),
        (Policy.ALS, {"model": None}),
        (Policy.TWO_TOWER, {"liked": {}}),
        (Policy.NCF, {"liked": {}}),
        (Policy.ALS, {"liked": {}}),
        (Policy.ALS, {"liked": {"ann": ["lamp-1"]}, "items": shop.wide_catalogue()}),
    ],
    ids=[
        "no towers",
        "no ncf",
        "no factors",
        "no content",
        "no model",
        "no history",
        "no history",
        "no history",
        "history unknown to the model",
    ],
)
def test_a_policy_without_its_model_or_history_falls_back_to_the_next_tier(
    policy: Policy, changes: dict[str, Any]
) -> None:
    served = an_offline(**changes)
    asked = RecommendationRequest("ann", 5, options=only(policy), interests=("Cables",))
    assert served.answer(asked).body["source"] == Tier.INTERESTS
    if changes.get("liked") == {}:
        answer = served.answer(dataclasses.replace(asked, interests=()))
        assert (answer.body["source"], answer.policy) == (Tier.TRENDING, policy)


@pytest.mark.parametrize("policy", ALONE)
def test_items_added_after_the_model_fill_a_list(policy: Policy) -> None:
    late = [
        Item(item_id=f"late-{n}", title="Late", categories=("Electronics", "Cables"))
        for n in range(3)
    ]
    served = an_offline(items=[*shop.catalogue(), *late])
    rows = served.items("ann", 40, category="Cables", options=only(policy))
    assert {row["item_id"] for row in rows} >= {item.item_id for item in late}
    assert {row["source"] for row in rows if row["item_id"].startswith("late-")} == {"popular"}


@pytest.mark.parametrize("policy", ALONE)
def test_an_attribution_is_the_score_change_without_the_event(policy: Policy) -> None:
    served = an_offline()
    row = served.items("ann", 1, explain=True, options=only(policy))[0]
    liked, now_ms = LIKED["ann"], served.snapshot.now_ms
    effects = {cause["item_id"]: cause["effect"] for cause in row["attributions"]}
    assert set(effects) == set(liked)
    for left_out, effect in effects.items():
        without = [(n, item) for n, item in enumerate(liked) if item != left_out]
        scores = scores_of(policy, a_model(), [item for _, item in without], now_ms)
        assert effect == pytest.approx(row["score"] - scores[row["item_id"]], abs=1e-4)


def test_a_policy_in_the_request_overrides_the_arm(shop_api: Running) -> None:
    after(shop_api, "zoe", shop_api.feedback("zoe", "camera-1"))
    blend = shop_api.list_for("zoe", n=5)
    arms = [{"name": name, "policy": "als"} for name in ("a", "b")]
    draft = {"name": "factors", **DECIDED_BY, "arms": arms}
    assert shop_api.http.post("/experiments", json=draft).status_code == 201
    during = shop_api.list_for("zoe", n=5)
    assert during["experiment"]["name"] == "factors"
    assert {item["source"] for item in during["items"]} == {"als"}
    settled = shop_api.list_for("zoe", n=5, policy="blend")
    assert "experiment" not in settled
    assert [item["contributions"] for item in settled["items"]] == [
        item["contributions"] for item in blend["items"]
    ]
    shop_api.list_for("zoe", n=5)

    def counted() -> int:
        return sum(arm["lists"] for arm in shop_api.get("/experiments/factors")["arms"])

    # lists of one user are counted in their order
    wait_until(lambda: counted() >= 2)
    assert counted() == 2, "a list with its own policy was counted for the experiment"


def test_an_event_changes_the_list_of_ncf(shop_api: Running) -> None:
    after(shop_api, "kim", shop_api.feedback("kim", "camera-1"))
    first = shop_api.list_for("kim", n=8, policy="ncf")
    for number in range(3):
        after(shop_api, "kim", shop_api.feedback("kim", f"cable-{number}"))
    second = shop_api.list_for("kim", n=8, policy="ncf", explain=True)
    for body, kind in ((first, "camera"), (second, "cable")):
        assert body["source"] == "personalised"
        assert {item["source"] for item in body["items"]} == {"ncf"}
        assert all(item["item_id"].startswith(kind) for item in body["items"])
    causes = {cause["item_id"] for cause in second["items"][0]["attributions"]}
    assert causes & {"cable-0", "cable-1", "cable-2"}


def test_policies_over_http_and_by_the_client(shop_api: Running) -> None:
    after(shop_api, "ned", shop_api.feedback("ned", "camera-1"))
    found = {policy: shop_api.list_for("ned", n=8, policy=policy) for policy in Policy}
    assert {policy: body["source"] for policy, body in found.items()} == {
        "blend": "personalised",
        "als": "personalised",
        "two_tower": "interests",  # this model has no towers
        "ncf": "personalised",
        "content": "personalised",
        "trending": "popular",  # the user has seen every trending item
        "popular": "popular",
    }
    assert shop_api.http.get("/recommendations?policy=best").status_code == 422
    with Client(shop_api.url) as client:
        mine = client.recommendations("ned", 8, policy="als")
        assert [item.item_id for item in mine.items] == [
            item["item_id"] for item in found[Policy.ALS]["items"]
        ]
        with pytest.raises(BadInput, match="policy"):
            client.recommendations("ned", policy="best")

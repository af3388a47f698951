"""Experiments: drafts and plans, assignment to arms, and rows in SQL."""

from __future__ import annotations

import dataclasses
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy.exc import IntegrityError

from afterclick.api import Policy
from serving.control.experiments import (
    Assignment,
    Experiment,
    ExperimentDraft,
    add_experiment,
    bucket,
    read_experiments,
    stop_experiment,
)
from serving.control.significance import sample_ratio_p_value
from serving.control.store import Database
from serving.request import PLAIN, RecommendationRequest
from tests.serving import shop
from tests.serving.offline import Offline

_SHARES: tuple[dict[str, Any], ...] = (
    {"a": 1.0, "b": 1.0},
    {"a": 0.9, "b": 0.1},
    {"a": 3.0, "b": 2.0, "c": 5.0},
)


DECIDED_BY: dict[str, Any] = {"metric": "clicks_per_user", "plan": {"users": 100}}


def an_experiment(
    name: str = "e", salt: str = "salt", traffic: float = 1.0, **shares: Any
) -> Experiment:
    arms = [{"name": arm, "share": share} for arm, share in (shares or {"a": 1, "b": 1}).items()]
    draft = {"name": name, **DECIDED_BY, "arms": arms, "salt": salt, "traffic": traffic}
    return Experiment.of(ExperimentDraft.model_validate(draft))


def arms_of(experiment: Experiment, users: int = 20_000) -> Counter[str]:
    arms = (experiment.arm_of(f"user {n}") for n in range(users))
    return Counter(arm.name if arm else "" for arm in arms)


def test_users_are_split_by_the_shares() -> None:
    for shares in _SHARES:
        found = arms_of(an_experiment(**shares))
        assert sample_ratio_p_value([found[arm] for arm in shares], list(shares.values())) > 0.001


def arm_name(experiment: Experiment, user_id: str) -> str:
    arm = experiment.arm_of(user_id)
    assert arm is not None
    return arm.name


def test_traffic_limits_the_share_of_users_and_splits_them_evenly() -> None:
    found = arms_of(an_experiment(traffic=0.2))
    assert sample_ratio_p_value([found[""], found["a"] + found["b"]], [0.8, 0.2]) > 0.001
    assert sample_ratio_p_value([found["a"], found["b"]], [1, 1]) > 0.001


def test_two_experiments_split_users_independently() -> None:
    one, two = an_experiment(salt="one"), an_experiment(salt="two")
    users = [f"user {n}" for n in range(20_000)]
    pairs = Counter((arm_name(one, u), arm_name(two, u)) for u in users)
    assert sample_ratio_p_value(list(pairs.values()), [1, 1, 1, 1]) > 0.001
    same = an_experiment(salt="one")
    assert all(arm_name(one, u) == arm_name(same, u) for u in users[:500])


@given(st.text(max_size=128), st.text(max_size=64))
def test_every_user_has_a_bucket(user_id: str, salt: str) -> None:
    user_id = user_id.encode("utf-8", "replace").decode()
    salt = salt.encode("utf-8", "replace").decode()
    assert 0 <= bucket(salt, user_id) < 1
    assert bucket(salt, user_id) == bucket(salt, user_id)
    assert an_experiment(traffic=1.0).arm_of(user_id) is not None


def test_a_user_is_in_the_oldest_running_experiment_that_includes_them() -> None:
    first = an_experiment("first", traffic=0.5)
    second = an_experiment("second", salt="other")
    both = Assignment([first, second])
    found = Counter(assigned.experiment for n in range(2000) if (assigned := both.of(f"u{n}")))
    assert 850 < found["first"] < 1150
    assert found["first"] + found["second"] == 2000
    stopped = first.model_copy(update={"stopped": first.created})
    assert {
        a.experiment for n in range(50) if (a := Assignment([stopped, second]).of(f"u{n}"))
    } == {"second"}
    assert both.of("") is None
    assert Assignment().of("u1") is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "e", "arms": [{"name": "a"}]},
        {"name": "e", "arms": [{"name": "a"}, {"name": "a"}]},
        {"name": "e", "arms": [{"name": "a"}, {"name": "b", "share": 0}]},
        {"name": "e", "arms": [{"name": "a"}, {"name": "b", "share": 5e-324}]},
        {"name": "e", "arms": [{"name": "a"}, {"name": "b", "policy": "best"}]},
        {"name": "e", "arms": [{"name": "a"}, {"name": "b", "explore": 1.5}]},
        {"name": "e", "arms": [{"name": "a"}, {"name": "b", "weights": {"luck": 2}}]},
        {"name": "e/f", "arms": [{"name": "a"}, {"name": "b"}]},
        {"name": "e", "traffic": 0, "arms": [{"name": "a"}, {"name": "b"}]},
    ],
)
def test_an_inconsistent_experiment_is_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ExperimentDraft.model_validate({**DECIDED_BY, **wrong})


TWO_ARMS = [{"name": "a"}, {"name": "b"}]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"plan": {"users": 100}}, "metric"),
        ({"metric": "conversion"}, "plan"),
        ({"metric": "ctr", "plan": {"users": 100}}, "metric"),
        ({"metric": "conversion", "plan": {}}, "needs `users`, or `baseline` and `effect`"),
        ({"metric": "conversion", "plan": {"baseline": 0.05}}, "`effect`"),
        ({"metric": "conversion", "plan": {"baseline": 0.9, "effect": 0.2}}, "below 1"),
        ({"metric": "conversion", "plan": {"baseline": 1e-9, "effect": 1e-6}}, "another `effect`"),
        ({"metric": "clicks_per_user", "plan": {"baseline": 1, "effect": 0.1}}, "`deviation`"),
        ({**DECIDED_BY, "days": 0}, "days"),
        ({**DECIDED_BY, "days": 31}, "days"),
    ],
)
def test_an_experiment_needs_a_metric_and_a_plan(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        ExperimentDraft.model_validate({"name": "e", "arms": TWO_ARMS, **wrong})


def test_the_users_of_a_plan_are_computed_once_and_stored() -> None:
    plan = {"baseline": 0.05, "effect": 0.1}
    draft = {"name": "e", "metric": "conversion", "plan": plan, "arms": TWO_ARMS}
    found = Experiment.of(ExperimentDraft.model_validate(draft))
    # at a fixed horizon 31,234; looking at any time costs a factor of (3.035 + 0.842)² / 2.802²
    assert found.plan.users == pytest.approx(31_234 * 1.915, rel=0.005)
    assert (found.plan.baseline, found.plan.effect, found.days) == (0.05, 0.1, 7)
    assert found.test.planned == found.plan.users
    more = {**draft, "arms": [*TWO_ARMS, {"name": "c"}]}
    assert Experiment.of(ExperimentDraft.model_validate(more)).test.planned > found.test.planned


def test_actions_count_until_the_days_after_the_stop_are_over() -> None:
    running = an_experiment()
    later = running.created + timedelta(days=1000)
    assert running.counts_at(later)
    stopped = running.model_copy(update={"stopped": running.created})
    assert stopped.counts_at(running.created + timedelta(days=6.9))
    assert not stopped.counts_at(running.created + timedelta(days=7))


def test_an_arm_defines_the_options_of_its_lists() -> None:
    draft = {
        "name": "e",
        **DECIDED_BY,
        "arms": [
            {"name": "plain"},
            {
                "name": "all",
                "policy": "trending",
                "explore": 0.1,
                "draw": "softmax",
                "diversity": 0.5,
            },
            {"name": "weighed", "weights": {"trend": 2, "model": 0.5}},
        ],
    }
    arms = Experiment.of(ExperimentDraft.model_validate(draft)).arms
    assert arms[0].options == PLAIN
    assert [arm.options.label for arm in arms] == [
        "blend",
        "trending explore=0.1/softmax diversity=0.5",
        "blend model*0.5 trend*2",
    ]


def test_weights_change_the_order_and_the_contributions() -> None:
    served = Offline(liked={"ann": ["camera-3"]}, model=shop.model("m1"))
    plain = {row["item_id"]: row for row in served.items("ann", 20)}
    trend = dataclasses.replace(PLAIN, weights=(("content", 0.0), ("history", 0.0), ("model", 0.0)))
    weighed = served.items("ann", 20, options=trend)
    assert all(row["contributions"]["history"] == 0 for row in weighed)
    assert [row["item_id"] for row in weighed] != list(plain)
    for row in weighed:
        if row["item_id"] in plain:
            assert row["contributions"]["trend"] == pytest.approx(
                plain[row["item_id"]]["contributions"]["trend"]
            )


def test_the_popular_policy_shows_popular_items_without_seen_ones() -> None:
    served = Offline(liked={"ann": ["camera-0", "cable-1"]}, model=shop.model("m1"))
    popular = dataclasses.replace(PLAIN, policy=Policy.POPULAR)
    expected = [i for i in shop.item_ids() if i not in ("camera-0", "cable-1")][:10]
    assert served.ids("ann", options=popular) == expected
    answer = served.answer(RecommendationRequest("ann", 10, options=popular))
    assert (answer.body["source"], answer.policy) == ("popular", "popular")


def test_experiments_are_read_back_from_sql_and_stopped_once(database_url: str) -> None:
    database = Database(database_url)
    database.upgrade()
    kept = [an_experiment("one"), an_experiment("two", a=1, b=2, c=3)]
    with database.begin() as connection:
        for experiment in kept:
            add_experiment(connection, experiment)
    with database.begin() as connection:
        assert list(read_experiments(connection)) == kept
    with pytest.raises(IntegrityError), database.begin() as connection:
        add_experiment(connection, kept[0])
    with database.begin() as connection:
        assert stop_experiment(connection, "one")
        assert not stop_experiment(connection, "one")
        assert not stop_experiment(connection, "three")
        assert [e.stopped is None for e in read_experiments(connection)] == [False, True]
    database.close()

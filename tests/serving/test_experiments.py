"""Experiments: assignment to arms, and counts that are never lost."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy.exc import IntegrityError

from afterclick.api import Policy
from afterclick.errors import Unavailable
from afterclick.events import Action
from serving.control.experiments import (
    Assigned,
    Assignment,
    Experiment,
    ExperimentDraft,
    add_experiment,
    bucket,
    read_experiments,
    read_sums,
    stop_experiment,
)
from serving.control.significance import sample_ratio_p_value
from serving.control.store import Database
from serving.events.reactions import ReactionCounter, ShownList
from serving.request import PLAIN, RecommendationRequest
from tests.serving import shop
from tests.serving.offline import Offline

_SHARES: tuple[dict[str, Any], ...] = (
    {"a": 1.0, "b": 1.0},
    {"a": 0.9, "b": 0.1},
    {"a": 3.0, "b": 2.0, "c": 5.0},
)


def an_experiment(
    name: str = "e", salt: str = "salt", traffic: float = 1.0, **shares: Any
) -> Experiment:
    arms = [{"name": arm, "share": share} for arm, share in (shares or {"a": 1, "b": 1}).items()]
    draft = {"name": name, "arms": arms, "salt": salt, "traffic": traffic}
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
        ExperimentDraft.model_validate(wrong)


def test_an_arm_defines_the_options_of_its_lists() -> None:
    draft = {
        "name": "e",
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


A, B = Assigned("e", "a", PLAIN), Assigned("e", "b", PLAIN)


def show(counter: ReactionCounter, impression_id: str, user_id: str, assigned: Assigned) -> None:
    counter.on_impression(ShownList(impression_id, user_id, "trending", None, 3, assigned))


def act(counter: ReactionCounter, prefix: str = "") -> None:
    """Ann looks at three lists, clicks twice on one and buys there; Bob looks once."""
    for n in range(3):
        show(counter, f"{prefix}ann-{n}", "ann", A)
    show(counter, f"{prefix}bob-0", "bob", B)
    for action in (Action.CLICK, Action.CLICK, Action.PURCHASE, Action.PURCHASE, Action.SKIP):
        counter.on_feedback(f"{prefix}ann-0", action)
    counter.on_feedback("unknown", Action.CLICK)
    counter.on_feedback(None, Action.CLICK)
    counter.on_feedback(f"{prefix}bob-0", Action.SKIP)


def test_counts_of_several_processes_add_up(database_url: str) -> None:
    database = Database(database_url)
    database.upgrade()
    for prefix in ("1", "2"):
        counter = ReactionCounter()
        act(counter, prefix)
        counter.sync(database)
        counter.sync(database)  # writes no row twice
    with database.begin() as connection:
        sums = read_sums(connection, "e")
    ann = sums["a"]
    assert (ann.users, ann.lists, ann.clicked) == (1, 6, 2)
    assert (ann.clicks, ann.buyers, ann.purchased) == (4, 1, 2)
    assert (ann.lists_squared, ann.clicked_squared, ann.lists_clicked) == (36, 4, 12)
    assert (sums["b"].users, sums["b"].lists, sums["b"].clicked) == (1, 2, 0)
    database.close()


def test_counts_that_cannot_be_written_wait_and_are_written_once(database_url: str) -> None:
    down, database = Database("postgresql://user@127.0.0.1:1/absent"), Database(database_url)
    database.upgrade()
    counter = ReactionCounter()
    act(counter)
    for _ in range(2):
        with pytest.raises(Unavailable):
            counter.sync(down)
    show(counter, "later", "ann", A)
    counter.sync(database)
    with database.begin() as connection:
        assert read_sums(connection, "e")["a"].lists == 4
    database.close()

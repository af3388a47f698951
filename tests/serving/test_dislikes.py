"""Skipped items push similar ones down, at once, and a later like brings them back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from afterclick.api import Policy
from afterclick.events import Action
from serving.control.experiments import Arm
from serving.request import Options
from tests.serving import shop
from tests.serving.offline import Event, Offline

SKIPS = [(f"camera-{n}", Action.SKIP) for n in range(15, 25)]
LIKES = ["camera-29", "cable-29"]


def offline(*events: Event, model: bool = True, weight: float = 2.0, **config: Any) -> Offline:
    """A shop whose user `u` did these things, newest first."""
    # cameras and cables are equally popular
    interactions = [30 - n % 30 for n in range(60)]
    made = shop.model("m1") if model else None
    return Offline(
        interactions=interactions, liked={"u": events}, model=made, dislike_weight=weight, **config
    )


def cameras(rows: Sequence[dict[str, Any]]) -> int:
    return sum(row["item_id"].startswith("camera") for row in rows)


@pytest.mark.parametrize(
    ("likes", "model"), [(LIKES, True), ([], True), ([], False)], ids=["known", "newcomer", "cold"]
)
def test_ten_skipped_cameras_push_cameras_down_and_likes_bring_them_back(
    likes: list[str], model: bool
) -> None:
    before = offline(*likes, model=model).items("u")
    skipped = offline(*SKIPS, *likes, model=model).items("u")
    # control: without the penalty the next cameras take the place of the skipped ones
    control = offline(*SKIPS, *likes, model=model, weight=0.0).items("u")
    again = [f"camera-{n}" for n in (28, 27, 26)]
    back = offline(*again, *SKIPS, *likes, model=model).items("u")
    assert cameras(skipped) <= cameras(before) - 3
    assert cameras(skipped) <= cameras(control) - 3
    assert cameras(back) >= cameras(skipped) + 3


def test_the_receipt_shows_the_penalty_and_the_skips_that_caused_it() -> None:
    rows = offline(*SKIPS[:3], "cable-29").items("u", n=40, explain=True)
    penalties = {row["item_id"]: row["contributions"]["dislikes"] for row in rows}
    camera = [value for item, value in penalties.items() if item.startswith("camera")]
    cable = [value for item, value in penalties.items() if item.startswith("cable")]
    assert max(camera) < min(cable) <= 0.0
    row = next(row for row in rows if row["item_id"].startswith("camera"))
    skips = [cause for cause in row["attributions"] if cause["action"] == Action.SKIP]
    assert skips
    assert all(cause["effect"] < 0.0 for cause in skips)


def test_each_skip_lowers_similar_items_further() -> None:
    penalties = [
        next(
            row["contributions"]["dislikes"]
            for row in offline(*SKIPS[:n], "cable-29").items("u", n=50)
            if row["item_id"] == "camera-5"
        )
        for n in (1, 3, 10)
    ]
    assert 0.0 > penalties[0] > penalties[1] > penalties[2]


def test_one_skip_among_many_liked_cameras_costs_little() -> None:
    likes = [f"camera-{n}" for n in range(6, 14)]
    alone, outweighed = (
        next(
            row["contributions"]["dislikes"]
            for row in offline("cable-29", *SKIPS[:1], *likes).items("u", n=50)
            if row["item_id"] == "camera-5"
        )
        for likes in ([], likes)
    )
    assert alone < 2 * outweighed < 0.0


def test_an_arm_of_an_experiment_may_switch_the_penalty_off() -> None:
    arm = Arm(name="plain", weights={"dislikes": 0.0})
    rows = offline(*SKIPS, *LIKES).items("u", options=arm.options)
    assert all(row["contributions"]["dislikes"] == 0.0 for row in rows)


def test_lists_asked_for_as_trending_or_popular_are_the_same_for_all() -> None:
    for policy in (Policy.TRENDING, Policy.POPULAR):
        rows = offline(*SKIPS).items("u", options=Options(policy))
        assert all("dislikes" not in row["contributions"] for row in rows)


def test_without_dislikes_lists_have_no_penalty() -> None:
    rows = offline(*LIKES).items("u")
    assert all("dislikes" not in row["contributions"] for row in rows)
    assert rows == offline(*LIKES, weight=0.0).items("u")


def test_undone_and_liked_skips_are_no_dislikes() -> None:
    undone = offline(*[(item, Action.UNDO) for item, _ in SKIPS], *SKIPS, *LIKES)
    assert all("dislikes" not in row["contributions"] for row in undone.items("u"))
    liked = offline(*[item for item, _ in SKIPS], *SKIPS, *LIKES)
    assert all("dislikes" not in row["contributions"] for row in liked.items("u"))


def test_bought_items_come_back_after_the_days_of_their_category() -> None:
    bought = ("cable-0", Action.PURCHASE)
    liked = "cable-29"
    days = {"Cables": 0.0}
    assert "cable-0" not in offline(bought, liked).ids("u", n=50)
    assert "cable-0" in offline(bought, liked, repeat_purchase_days=days).ids("u", n=50)
    assert liked not in offline(bought, liked, repeat_purchase_days=days).ids("u", n=50)
    waits = {"Cables": 1.0}
    assert "cable-0" not in offline(bought, liked, repeat_purchase_days=waits).ids("u", n=50)


def test_scores_of_a_pool_of_equal_scores_are_lowered_too() -> None:
    equal = Offline(interactions=[0] * 60, liked={"u": SKIPS}, dislike_weight=2.0)
    rows = equal.items("u", n=30)
    assert not np.allclose([row["contributions"]["dislikes"] for row in rows], 0.0)

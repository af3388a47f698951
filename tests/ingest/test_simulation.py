"""The simulated shoppers, their click model and their latent factors."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterclick.events import Action
from ingest.click_model import (
    FATIGUE,
    LATENT_STRENGTH,
    REST_VISITS,
    GroundTruth,
    LatentTaste,
    SeenItem,
    SimulatedUser,
    look_probability,
)
from ingest.simulation import Counters, Participant, SimulatedArm, summary

CATEGORIES = tuple(f"category {n}" for n in range(12))
CATALOGUE = [SeenItem(f"I{n}", ("all", CATEGORIES[n % 12])) for n in range(240)]


def shopper(name: str = "ann", seed: int = 1) -> SimulatedUser:
    return SimulatedUser.create(name, CATEGORIES, seed)


def test_the_same_seed_gives_the_same_shoppers_and_actions() -> None:
    visits = [shopper().visit(CATALOGUE[:50], GroundTruth(1)) for _ in range(2)]
    assert visits[0] == visits[1]
    assert shopper("ann").tastes != shopper("bea").tastes
    assert shopper("ann", 1).tastes != shopper("ann", 2).tastes


def test_items_of_a_taste_are_clicked_more() -> None:
    truth = GroundTruth(3)
    rates: dict[bool, list[float]] = {True: [], False: []}
    for n in range(50):
        person = shopper(f"p{n}")
        for item in CATALOGUE:
            rates[person.affinity(item) > 0].append(person.click_probability(item, truth))
    liked, other = (sum(values) / len(values) for values in (rates[True], rates[False]))
    assert 0.03 < other < 0.09, other
    assert 0.2 < liked < 0.45, liked


def test_the_expected_clicks_match_the_click_frequency() -> None:
    truth = GroundTruth(5)
    clicks = expected = 0.0
    for n in range(1500):
        visit = shopper(f"p{n}").visit(CATALOGUE[:20], truth)
        clicks += visit.clicks
        expected += visit.expected_clicks
    assert abs(clicks / expected - 1) < 0.05, (clicks, expected)


def test_an_item_rests_after_a_click_and_is_bought_or_liked_only_after_one() -> None:
    person, truth = shopper(), GroundTruth(1, hot=frozenset(item.item_id for item in CATALOGUE))
    actions = [action for _ in range(5) for action in person.visit(CATALOGUE, truth).actions]
    clicked = Counter(action.item_id for action in actions if action.action is Action.CLICK)
    assert max(clicked.values()) == 1
    bought = {action.item_id for action in actions if action.action is Action.PURCHASE}
    person.visits += REST_VISITS[Action.CLICK]
    for item in CATALOGUE:
        again = person.click_probability(item, truth)
        assert (again > 0) is (item.item_id not in bought), item
    person.visits += REST_VISITS[Action.PURCHASE]
    assert all(person.click_probability(item, truth) > 0 for item in CATALOGUE)
    assert {d.item_id for d in actions if d.action in {Action.LIKE, Action.PURCHASE}} <= set(
        clicked
    )


def test_an_item_shown_without_a_click_is_clicked_less_and_a_click_makes_up_for_it() -> None:
    person, truth, item = shopper(), GroundTruth(1), CATALOGUE[0]
    fresh, found = person.click_probability(item, truth), []
    for _ in range(3):
        person.ignored[item.item_id] = person.ignored.get(item.item_id, 0) + 1
        found.append(person.click_probability(item, truth))
    assert found == pytest.approx([fresh * FATIGUE**k for k in (1, 2, 3)])
    for n in range(100):
        someone = shopper(f"p{n}")
        fresh = someone.click_probability(item, truth)
        someone.ignored[item.item_id] = 1
        if someone.visit([item], GroundTruth(1, hot=frozenset({item.item_id}))).clicks:
            break
    assert someone.ignored == {}
    someone.visits += max(REST_VISITS.values())
    assert someone.click_probability(item, truth) == fresh


def test_latent_liking_is_in_no_category_and_can_be_switched_off() -> None:
    person, truth = shopper(), GroundTruth(1)
    liking = np.array([truth.latent.liking(person.latent, item.item_id) for item in CATALOGUE])
    assert 0.7 * LATENT_STRENGTH < liking.std() < 1.3 * LATENT_STRENGTH
    means = liking.reshape(-1, len(CATEGORIES)).mean(axis=0)
    # of 20 items each: the means of categories vary as much as those of random groups
    assert means.std() < 1.5 * liking.std() / 20**0.5
    off = GroundTruth(1, latent=LatentTaste(0.0))
    assert {off.latent.liking(person.latent, item.item_id) for item in CATALOGUE} == {0.0}


def test_a_trending_item_is_clicked_more() -> None:
    item, person = CATALOGUE[0], shopper()
    hot = GroundTruth(1, hot=frozenset({item.item_id}))
    assert person.click_probability(item, hot) > person.click_probability(item, GroundTruth(1))


def test_drift_replaces_a_taste_and_keeps_their_number() -> None:
    person = shopper()
    before = dict(person.tastes)
    person.drift(CATEGORIES)
    assert len(person.tastes) == len(before)
    assert set(person.tastes) != set(before)


@settings(max_examples=50)
@given(st.integers(1, 200))
def test_lower_ranks_are_examined_less(place: int) -> None:
    assert 0 < look_probability(place + 1) < look_probability(place) <= 1


def test_the_lift_and_its_interval_agree_with_the_logged_clicks() -> None:
    def participant(n: int, arm: SimulatedArm, clicks: int) -> Participant:
        return Participant(shopper(f"c{n}"), arm, counters=Counters(shown=100, clicks=clicks))

    better = [participant(n, SimulatedArm.RECOMMENDED, 20 + n % 3) for n in range(100)]
    worse = [participant(n, SimulatedArm.POPULAR, 10 + n % 3) for n in range(100)]
    figures = summary(better + worse)
    assert figures["arms"]["recommended"]["ctr"] == 0.2099
    assert abs(figures["lift"] - (2099 / 1099 - 1)) < 1e-3
    assert 0.7 < figures["lift_95"][0] < figures["lift"] < figures["lift_95"][1] < 1.1
    assert "content" not in figures["arms"]
    content = [participant(n, SimulatedArm.CONTENT, 18 + n % 3) for n in range(100)]
    low, high = summary(better + worse + content)["content_lift_95"]
    assert 0 < low < 2099 / 1899 - 1 < high
    same = summary(better + [participant(n, SimulatedArm.POPULAR, 20 + n % 3) for n in range(100)])
    assert same["lift_95"][0] < 0 < same["lift_95"][1]

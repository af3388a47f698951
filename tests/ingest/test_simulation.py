"""The simulated shoppers and their click model."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from afterclick.events import Action
from ingest.click_model import GroundTruth, SeenItem, SimulatedUser, look_probability
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
    assert 0.01 < other < 0.04, other
    assert 0.2 < liked < 0.45, liked


def test_the_expected_clicks_match_the_click_frequency() -> None:
    truth = GroundTruth(5)
    clicks = expected = 0.0
    for n in range(1500):
        visit = shopper(f"p{n}").visit(CATALOGUE[:20], truth)
        clicks += visit.clicks
        expected += visit.expected_clicks
    assert abs(clicks / expected - 1) < 0.05, (clicks, expected)


def test_an_item_is_clicked_once_and_bought_or_liked_only_after_a_click() -> None:
    person, truth = shopper(), GroundTruth(1, hot=frozenset(item.item_id for item in CATALOGUE))
    actions = [action for _ in range(5) for action in person.visit(CATALOGUE, truth).actions]
    clicked = Counter(action.item_id for action in actions if action.action is Action.CLICK)
    assert max(clicked.values()) == 1
    assert {d.item_id for d in actions if d.action in {Action.LIKE, Action.PURCHASE}} <= set(
        clicked
    )


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
    same = summary(better + [participant(n, SimulatedArm.POPULAR, 20 + n % 3) for n in range(100)])
    assert same["lift_95"][0] < 0 < same["lift_95"][1]

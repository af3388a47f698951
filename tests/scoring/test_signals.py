"""Weights of events: by action, and by stars."""

from __future__ import annotations

import pickle

import pytest
from pydantic import ValidationError

from afterclick.events import Action
from afterclick.settings import Settings, StreamSettings
from afterclick.signals import Signals, stars_of

SIGNALS = StreamSettings().signals


@pytest.mark.parametrize(
    ("rating", "stars"), [(0, 1), (0.4, 1), (1, 1), (1.5, 2), (2.49, 2), (3, 3), (4.5, 5), (5, 5)]
)
def test_a_rating_is_rounded_half_up_to_stars(rating: float, stars: int) -> None:
    assert stars_of("review", rating) == stars


def test_stars_count_in_reviews_only() -> None:
    assert stars_of("purchase", 1.0) == stars_of("review", None) == 0
    assert SIGNALS.weight(Action.PURCHASE, 1.0) == SIGNALS.weight(Action.PURCHASE)


def test_few_stars_are_negative_and_many_as_positive_as_a_review_without() -> None:
    weights = [SIGNALS.weight(Action.REVIEW, stars) for stars in (1, 2, 3, 4, 5)]
    assert weights == [-1.0, -0.5, 0.5, 2.0, 2.0]
    assert SIGNALS.weight(Action.REVIEW) == 2.0


def test_the_case_of_a_code_says_whether_the_vote_is_positive() -> None:
    assert [SIGNALS.code(action) for action in Action] == ["A", "B", "C", "D", "E", "F", "g", ""]
    assert "".join(SIGNALS.code(Action.REVIEW, n) for n in (1, 2, 3, 4, 5)) == "vwXYZ"
    assert SIGNALS.weight_of_code["w"] == -0.5


def test_a_review_of_weight_0_votes_to_replace_an_earlier_one() -> None:
    settings = StreamSettings(weights={Action.REVIEW: 0.0, Action.VIEW: 0.0}, star_weights={3: 0.0})
    signals = settings.signals
    assert (signals.code(Action.REVIEW), signals.code(Action.REVIEW, 3.0)) == ("a", "x")
    assert signals.code(Action.VIEW) == ""
    assert signals.weight_of_code["a"] == signals.weight_of_code["x"] == 0.0


def test_a_code_names_one_weight() -> None:
    codes = [SIGNALS.code(action) for action in Action if action is not Action.UNDO]
    codes += [SIGNALS.code(Action.REVIEW, stars) for stars in (1, 2, 3, 4, 5)]
    assert len({code.lower() for code in codes}) == len(codes) == len(SIGNALS.weight_of_code)


def test_signals_travel_to_workers() -> None:
    again: Signals = pickle.loads(pickle.dumps(SIGNALS))
    assert again == SIGNALS
    assert again.code(Action.REVIEW, 1.0) == "v"


def test_settings_name_what_differs_from_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERCLICK_STREAM__WEIGHTS", '{"click": 0.5}')
    monkeypatch.setenv("AFTERCLICK_STREAM__STAR_WEIGHTS", '{"1": -3}')
    settings = Settings()
    signals = settings.stream.signals
    assert (signals.actions[Action.CLICK], signals.actions[Action.LIKE]) == (0.5, 2.0)
    assert (signals.stars[1], signals.stars[5]) == (-3.0, 2.0)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings().stream == settings.stream


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"weights": {"stare": 1.0}}, "'review', 'view', 'click'"),
        ({"conversions": ["stare"]}, "'review', 'view', 'click'"),
        ({"weights": {"undo": 1.0}}, "its weight must be 0"),
        ({"star_weights": {6: 1.0}}, "less than or equal to 5"),
        ({"star_weights": {1: float("nan")}}, "finite"),
    ],
)
def test_unknown_actions_and_stars_are_refused(given: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        StreamSettings.model_validate(given)

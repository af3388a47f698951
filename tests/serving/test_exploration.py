"""Exploration: logged propensities are the frequencies with which items are shown."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict

import numpy as np
import pytest

from afterclick import events
from afterclick.api import SamplingPolicy
from afterclick.events import ImpressionEvent, Item
from serving.control.significance import sample_ratio_p_value
from serving.eligibility import EXPLORATION_POOL
from serving.events.impressions import encode
from serving.request import PLAIN, Options, RecommendationRequest
from serving.rerank import explore, sampling_probabilities
from tests.serving import shop
from tests.serving.offline import Offline

SCORES = np.linspace(5.0, 0.0, 60)
OWN, REST = np.arange(8), np.arange(8, 60)


def rounds(
    sampling: SamplingPolicy, rate: float, count: int, seed: int = 4
) -> list[tuple[list[int], list[float]]]:
    rng, options = np.random.default_rng(seed), Options(explore=rate, sampling=sampling)
    found = (explore(OWN, REST, SCORES, options, rng) for _ in range(count))
    return [(one.rows.tolist(), one.propensities.tolist()) for one in found]


@pytest.mark.parametrize("sampling", list(SamplingPolicy))
@pytest.mark.parametrize("rate", [0.05, 0.5, 1.0])
def test_logged_propensities_are_the_frequencies(sampling: SamplingPolicy, rate: float) -> None:
    count = 20_000
    seen: Counter[tuple[int, int]] = Counter()
    logged: dict[tuple[int, int], set[float]] = defaultdict(set)
    for rows, propensities in rounds(sampling, rate, count):
        for place, (row, propensity) in enumerate(zip(rows, propensities, strict=True)):
            seen[place, row] += 1
            logged[place, row].add(round(propensity, 12))
    assert all(len(values) == 1 for values in logged.values()), (
        "an item has two propensities at one position"
    )
    for place in range(len(OWN)):
        rows = [row for at, row in seen if at == place]
        propensities = [next(iter(logged[place, row])) for row in rows]
        assert sum(propensities) == pytest.approx(1.0, abs=1e-9)
        assert sample_ratio_p_value([seen[place, row] for row in rows], propensities) > 1e-5


def test_inverse_propensity_scoring_estimates_an_untested_policy() -> None:
    """IPS: clicks logged while exploring tell what showing each place's first tail item would have
    earned."""
    dice = np.random.default_rng(8)
    appeal = dice.uniform(0.05, 0.6, 60)
    target = {place: 8 + place for place in range(len(OWN))}
    truth = sum(appeal[row] for row in target.values())
    estimates, naive = [], []
    for rows, propensities in rounds(SamplingPolicy.SOFTMAX, 0.4, 30_000):
        clicked = dice.random(len(rows)) < appeal[rows]
        on_target = np.array([row == target[place] for place, row in enumerate(rows)])
        estimates.append(float((clicked * on_target / np.array(propensities)).sum()))
        naive.append(sum(clicked))
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - truth) < 4 * error, (np.mean(estimates), truth)
    assert abs(np.mean(naive) - truth) > 4 * error, (
        "the control: plain clicks give the same estimate"
    )


def test_no_item_repeats_and_a_position_without_alternatives_is_certain() -> None:
    for rows, propensities in rounds(SamplingPolicy.UNIFORM, 0.5, 300):
        assert len(set(rows)) == len(rows)
        assert all(0 < p <= 1 for p in propensities)
    short = explore(OWN, REST[:3], SCORES, Options(explore=1.0), np.random.default_rng(0))
    assert short.rows.tolist() == [8, 9, 10, 3, 4, 5, 6, 7]
    assert short.propensities.tolist() == [1.0] * 8


def test_softmax_prefers_high_scores_and_uniform_does_not() -> None:
    scores = np.array([3.0, 2.0, 1.0])
    soft = sampling_probabilities(scores, SamplingPolicy.SOFTMAX)
    assert soft[0] > soft[1] > soft[2] > 0
    assert soft.sum() == pytest.approx(1.0)
    assert sampling_probabilities(scores, SamplingPolicy.UNIFORM).tolist() == pytest.approx(
        [1 / 3] * 3
    )
    assert sampling_probabilities(np.zeros(3), SamplingPolicy.SOFTMAX).tolist() == pytest.approx(
        [1 / 3] * 3
    )


def test_only_a_request_with_exploration_explores_and_contributions_show_it() -> None:
    served = Offline(liked={"ann": ["camera-3"]}, model=shop.model("m1"))
    plain = served.items("ann", 10)
    assert all(
        "propensity" not in row and "exploration" not in row["contributions"] for row in plain
    )
    assert served.ids("ann", 10) == served.ids("ann", 10)
    options = dataclasses.replace(PLAIN, explore=0.5)
    lists = [
        served.items("ann", 10, options=options) for _ in range(40)
    ]  # receipts are checked in there
    explored = [row for rows in lists for row in rows if row["contributions"]["exploration"] > 0]
    assert 100 < len(explored) < 300
    own = {row["item_id"] for row in plain}
    assert not own & {row["item_id"] for row in explored}
    for row in explored:
        assert 0.5 / EXPLORATION_POOL - 1e-9 <= row["propensity"] <= 0.5
    assert {row["propensity"] for rows in lists for row in rows if row["item_id"] in own} == {0.5}


def test_a_new_item_without_events_is_explored() -> None:
    items = [Item(item_id=f"i{n}") for n in range(400)]
    served = Offline(items, interactions=[5] * 399 + [0])
    newest = "i399"
    assert newest not in served.ids("", 200)
    options = dataclasses.replace(PLAIN, explore=1.0)
    assert any(newest in served.ids("", 10, options=options) for _ in range(200))


def test_an_impression_records_policy_and_propensities() -> None:
    served = Offline()
    options = dataclasses.replace(PLAIN, explore=0.25, sampling=SamplingPolicy.SOFTMAX)
    explored, plain = (
        served.answer(RecommendationRequest("", 5, options=o)) for o in (options, PLAIN)
    )
    explored.body["experiment"] = {"name": "e", "arm": "a"}
    event = events.decode(encode(explored))
    assert isinstance(event, ImpressionEvent)
    assert (event.data.policy, event.data.experiment, event.data.arm) == (
        "blend explore=0.25/softmax",
        "e",
        "a",
    )
    assert all(0 < row.propensity <= 0.75 for row in event.data.items)
    certain = events.decode(encode(plain))
    assert isinstance(certain, ImpressionEvent)
    assert (certain.data.policy, certain.data.experiment) == ("blend", None)
    assert [row.propensity for row in certain.data.items] == [1.0] * 5

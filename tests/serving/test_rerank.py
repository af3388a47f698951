"""Reranking: propensities of explored lists are exact; diversity spreads similar items."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterclick import events
from afterclick.api import SamplingPolicy
from afterclick.events import ImpressionEvent, Item
from serving.control.significance import sample_ratio_p_value
from serving.eligibility import EXPLORATION_POOL
from serving.events.impressions import encode
from serving.request import PLAIN, Options, RecommendationRequest
from serving.rerank import diversify, explore, sampling_probabilities
from tests.serving import shop
from tests.serving.offline import Offline

SCORES = np.linspace(5.0, 0.0, 60)
SLOTS, BELOW = np.arange(8), np.arange(8, 60)


def rounds(
    sampling: SamplingPolicy, rate: float, count: int, seed: int = 4
) -> list[tuple[list[int], list[float]]]:
    rng, options = np.random.default_rng(seed), Options(explore=rate, sampling=sampling)
    lists = (explore(SLOTS, BELOW, SCORES, options, rng) for _ in range(count))
    return [(explored.rows.tolist(), explored.propensities.tolist()) for explored in lists]


@pytest.mark.parametrize("sampling", list(SamplingPolicy))
@pytest.mark.parametrize("rate", [0.05, 0.5, 1.0])
def test_logged_propensities_are_the_frequencies(sampling: SamplingPolicy, rate: float) -> None:
    count = 20_000
    seen: Counter[tuple[int, int]] = Counter()
    logged: dict[tuple[int, int], set[float]] = defaultdict(set)
    for rows, propensities in rounds(sampling, rate, count):
        for rank, (row, propensity) in enumerate(zip(rows, propensities, strict=True)):
            seen[rank, row] += 1
            logged[rank, row].add(round(propensity, 12))
    assert all(len(values) == 1 for values in logged.values()), (
        "an item has two propensities at one position"
    )
    for rank in range(len(SLOTS)):
        rows = [row for shown_at, row in seen if shown_at == rank]
        propensities = [next(iter(logged[rank, row])) for row in rows]
        assert sum(propensities) == pytest.approx(1.0, abs=1e-9)
        assert sample_ratio_p_value([seen[rank, row] for row in rows], propensities) > 1e-5


def test_inverse_propensity_scoring_estimates_an_untested_policy() -> None:
    """IPS: clicks logged while exploring estimate the clicks of a policy that shows each
    rank's first alternative."""
    rng = np.random.default_rng(8)
    click_rate = rng.uniform(0.05, 0.6, 60)
    target = {rank: 8 + rank for rank in range(len(SLOTS))}
    truth = sum(click_rate[row] for row in target.values())
    estimates, naive = [], []
    for rows, propensities in rounds(SamplingPolicy.SOFTMAX, 0.4, 30_000):
        clicked = rng.random(len(rows)) < click_rate[rows]
        on_target = np.array([row == target[rank] for rank, row in enumerate(rows)])
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
    short = explore(SLOTS, BELOW[:3], SCORES, Options(explore=1.0), np.random.default_rng(0))
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
    lists = [served.items("ann", 10, options=options) for _ in range(40)]
    explored = [row for rows in lists for row in rows if row["contributions"]["exploration"] > 0]
    assert 100 < len(explored) < 300
    slot_items = {row["item_id"] for row in plain}
    assert not slot_items & {row["item_id"] for row in explored}
    for row in explored:
        assert 0.5 / EXPLORATION_POOL - 1e-9 <= row["propensity"] <= 0.5
    assert {
        row["propensity"] for rows in lists for row in rows if row["item_id"] in slot_items
    } == {0.5}


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


LIKED = {"ann": ["camera-3", "camera-5"]}


def kinds(ids: list[str]) -> set[str]:
    return {item_id.split("-")[0] for item_id in ids}


def test_diversity_adds_the_other_kind_and_contributions_add_up() -> None:
    served = Offline(liked=LIKED, model=shop.model("m1"))
    assert kinds(served.ids("ann", 8)) == {"camera"}
    rows = served.items("ann", 8, options=dataclasses.replace(PLAIN, diversity=1.0))
    assert kinds([row["item_id"] for row in rows]) == {"camera", "cable"}
    assert rows[0]["item_id"] == served.ids("ann", 1)[0]
    assert rows[0]["contributions"]["diversity"] == 0
    assert any(row["contributions"]["diversity"] < 0 for row in rows)


def test_without_a_model_categories_define_similarity() -> None:
    served = Offline(interactions=[90 - i for i in range(60)])
    assert kinds(served.ids("", 8)) == {"camera"}
    assert kinds(served.ids("", 8, options=dataclasses.replace(PLAIN, diversity=1.0))) == {
        "camera",
        "cable",
    }


def similarity(vectors: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> float:
    """The mean similarity between the items of a list."""
    products = vectors @ vectors.T
    n = len(vectors)
    return float((products.sum() - np.trace(products)) / (n * (n - 1)))


def test_more_diversity_lowers_the_mean_similarity() -> None:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(80, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = 3.0 * vectors[:, 0] + 0.1 * rng.normal(size=80)
    similarities = [
        similarity(vectors[diversify(scores, vectors, d, 10)[0]]) for d in (0.0, 0.3, 1.0)
    ]
    assert similarities[0] > similarities[1] > similarities[2]


@given(st.integers(1, 30), st.integers(1, 40), st.floats(0, 1), st.integers(0, 1000))
def test_no_item_repeats_and_values_never_increase(
    count: int, pool: int, diversity: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(pool, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = rng.normal(size=pool)
    rows, penalties = diversify(scores, vectors, diversity, count)
    values = scores[rows] - penalties
    assert len(set(rows.tolist())) == len(rows) == min(count, pool)
    assert (penalties >= 0).all()
    assert (np.diff(values) <= 1e-9).all()
    if not diversity:
        assert rows.tolist() == np.argsort(-scores, kind="stable")[:count].tolist()

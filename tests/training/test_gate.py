"""A broken or worse challenger does not become champion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from afterclick.model import Model, WordVectors
from training import gate


def model(n: int = 20) -> Model:
    random = np.random.default_rng(0)
    neighbours = np.tile(np.arange(2, dtype=np.int32), (n, 1)), np.ones((n, 2), np.float32)
    ids = np.array([f"i{i}" for i in range(n)])
    factors = random.normal(size=(n, 4)).astype(np.float32)
    return Model("v", ids, np.ones(n, np.float32), np.zeros(n), *neighbours, *neighbours, factors)


def words(*shape: int, value: float = 1.0) -> WordVectors:
    return WordVectors(np.array(["camera", "usb"]), np.full(shape, value, np.float32))


def judged(values: np.ndarray) -> gate.PerQueryMetrics:
    return {"live": {gate.METRIC: values}}


def test_a_sound_model_passes() -> None:
    assert gate.sanity_check(model()).passed
    assert gate.sanity_check(
        replace(model(), content=np.ones((20, 3), np.float32), words=words(2, 3))
    ).passed


def test_nan_is_rejected() -> None:
    broken = model()
    assert broken.factors is not None
    broken.factors[3, 1] = np.nan
    verdict = gate.sanity_check(broken)
    assert not verdict.passed
    assert "als_item_factors holds NaN" in verdict.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"popularity": np.ones(7, np.float32)}, "popularity has 7 rows for 20 items"),
        ({"factors": np.zeros((20, 4), np.float32)}, "every ALS factor is zero"),
        ({"neighbour_items": np.full((20, 2), 20, np.int32)}, "out of range"),
        ({"item_ids": np.array(["same"] * 20)}, "holds duplicates"),
        ({"words": words(2, 3)}, "do not match"),
        ({"words": words(2, 3), "content": np.ones((20, 4), np.float32)}, "do not match"),
        ({"words": words(2, 3, value=np.nan)}, "content_word_vectors holds NaN"),
    ],
)
def test_a_wrong_shape_is_rejected(change: dict[str, Any], reason: str) -> None:
    verdict = gate.sanity_check(replace(model(), **change))
    assert not verdict.passed
    assert reason in verdict.reason


def test_a_model_that_lost_most_items_is_rejected() -> None:
    assert not gate.sanity_check(model(20), champion_items=50).passed
    assert gate.sanity_check(model(30), champion_items=50).passed


def test_better_and_equal_pass_and_worse_does_not() -> None:
    champion = np.random.default_rng(2).binomial(1, 0.2, 1000).astype(float)
    better, worse = champion.copy(), champion.copy()
    better[np.flatnonzero(champion == 0)[:60]] = 1
    worse[np.flatnonzero(champion == 1)[:60]] = 0
    assert gate.compare(judged(champion), judged(champion)).passed
    assert gate.compare(judged(better), judged(champion)).passed
    verdict = gate.compare(judged(worse), judged(champion))
    assert not verdict.passed
    assert "worse than the champion" in verdict.reason
    assert verdict.interval is not None
    assert verdict.interval[1] < 0


def test_noise_is_not_a_drop() -> None:
    random = np.random.default_rng(3)
    champion, other = (
        random.binomial(1, 0.2, 400).astype(float),
        random.binomial(1, 0.2, 400).astype(float),
    )
    other[:8] = np.minimum(other[:8], champion[:8])
    assert gate.compare(judged(other), judged(champion)).interval is not None
    assert gate.compare(judged(champion), judged(champion)).difference == 0.0


def test_nan_metrics_are_rejected() -> None:
    values = np.full(100, np.nan)
    assert not gate.compare(judged(values), judged(np.zeros(100))).passed


def test_too_few_queries_reject_no_model() -> None:
    verdict = gate.compare(judged(np.zeros(10)), judged(np.ones(10)))
    assert verdict.passed
    assert "only 10 questions" in verdict.reason


def test_a_model_without_a_ranker_does_not_replace_one_that_has_one() -> None:
    assert gate.decide(None, {"trends": judged(np.zeros(100)), "champion": None}).passed
    assert not gate.decide(None, {"champion": judged(np.zeros(100))}).passed


def test_a_model_worse_than_trends_is_rejected() -> None:
    trends = np.random.default_rng(2).binomial(1, 0.3, 500).astype(float)
    verdict = gate.decide(
        judged(np.zeros(500)), {"trends": judged(trends), "champion": judged(np.zeros(500))}
    )
    assert not verdict.passed
    assert "worse than the trends" in verdict.reason

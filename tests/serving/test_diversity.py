"""Diversity: similar items are spread as far as the request demands."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.request import PLAIN
from serving.rerank import diversify
from tests.serving import shop
from tests.serving.offline import Offline

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
    alike = [similarity(vectors[diversify(scores, vectors, d, 10)[0]]) for d in (0.0, 0.3, 1.0)]
    assert alike[0] > alike[1] > alike[2]


@given(st.integers(1, 30), st.integers(1, 40), st.floats(0, 1), st.integers(0, 1000))
def test_no_item_repeats_and_values_never_increase(
    count: int, pool: int, diversity: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(pool, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = rng.normal(size=pool)
    rows, lost = diversify(scores, vectors, diversity, count)
    values = scores[rows] - lost
    assert len(set(rows.tolist())) == len(rows) == min(count, pool)
    assert (lost >= 0).all()
    assert (np.diff(values) <= 1e-9).all()
    if not diversity:
        assert rows.tolist() == np.argsort(-scores, kind="stable")[:count].tolist()

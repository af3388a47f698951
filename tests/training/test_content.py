"""Titles and categories become vectors that put like beside like."""

from __future__ import annotations

import numpy as np
import pytest

from training import content

CATALOGUE: content.Catalogue = {
    "a": ("USB cable 2m", ("Electronics", "Cables")),
    "b": ("USB charging cable", ("Electronics", "Cables")),
    "c": ("Running shoes", ("Sport", "Shoes")),
    "d": (None, ()),
    "e": ("Trail running shoes", ("Sport", "Shoes")),
}


@pytest.mark.parametrize("engine", ["tfidf", "sbert"])
def test_like_items_are_near(engine: content.Engine) -> None:
    vectors = content.embed(content.texts_of("abcde", CATALOGUE), engine)
    assert vectors is not None
    near = vectors @ vectors.T
    assert near[0, 1] > near[0, 2]
    assert near[2, 4] > near[1, 4]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1)[[0, 1, 2, 4]], 1, rtol=1e-5)
    assert not vectors[3].any()


def test_without_texts_there_is_no_content() -> None:
    assert content.embed(["", "one"], "tfidf") is None
    assert content.texts_of(["unknown"], CATALOGUE) == [""]


def test_titles_of_nothing_but_stop_words_do_no_harm() -> None:
    vectors = content.embed(["the", "and"], "tfidf")
    assert vectors is not None
    assert np.isfinite(vectors).all()

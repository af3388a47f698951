"""Models load unchanged from their artifact, or are rejected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from afterclick import artifact
from afterclick.errors import BadArtifact
from afterclick.model import Model, TowerArrays, WordVectors, load
from afterclick.sequence_encoder import AGES_DAYS
from tests.scoring.examples import a_model, some_ncf
from tests.scoring.test_sequence_encoder import an_encoder, some_towers


def published(root: Path, model: Model) -> Path:
    facts = {"created": "now", "items": len(model), "parameters": model.parameters()}
    return artifact.write(root, model.version, model.save, **facts)[0]


def test_a_saved_model_loads_unchanged(tmp_path: Path) -> None:
    before = a_model(resolution_ms=86_400_000.0, phase_ms=3_600_000.0)
    after, manifest = load(published(tmp_path, before))
    for name, array in before.arrays().items():
        np.testing.assert_array_equal(after.arrays()[name], array)
    assert (after.version, after.als_alpha, after.als_reg, after.index["i3"]) == (
        "m1",
        10.0,
        0.1,
        3,
    )
    assert (after.resolution_ms, after.phase_ms) == (before.resolution_ms, before.phase_ms)
    assert manifest.items == len(after) == 6


def test_random_walk_lists_load_unchanged(tmp_path: Path) -> None:
    reach: dict[str, Any] = {
        "random_walk_items": np.full((6, 1), 2, np.int32),
        "random_walk_scores": np.ones((6, 1), np.float32),
    }
    model, _ = load(published(tmp_path, a_model(**reach)))
    assert model.random_walk_items is not None
    assert model.random_walk_items.tolist() == [[2]] * 6


def test_the_transition_graph_loads_unchanged(tmp_path: Path) -> None:
    graph: dict[str, Any] = {
        "transition_items": np.full((6, 2), 3, np.int32),
        "transition_scores": np.full((6, 2), 0.5, np.float32),
    }
    model, _ = load(published(tmp_path, a_model(**graph)))
    assert model.transitions is not None
    assert model.transitions.rows(np.array([1, 7], np.int32)).items.tolist() == [[3, 3], [-1, -1]]
    without, _ = load(published(tmp_path / "without", a_model()))
    assert without.transitions is None


def test_towers_without_an_encoder_load_unchanged(tmp_path: Path) -> None:
    ages = np.linspace(1, 2, len(AGES_DAYS) + 1).astype(np.float32)
    towers = TowerArrays(np.ones((6, 3), np.float32), np.full((6, 4), 2, np.float32), ages)
    model, _ = load(published(tmp_path, a_model(towers=towers)))
    assert model.towers is not None
    for name in ("history", "targets", "ages"):
        np.testing.assert_array_equal(getattr(model.towers, name), getattr(towers, name))


def test_the_sequence_model_loads_unchanged(tmp_path: Path) -> None:
    towers = some_towers(an_encoder(), 6)
    model, _ = load(published(tmp_path, a_model(towers=towers)))
    assert model.towers is not None
    assert model.towers.encoder is not None
    assert towers.encoder is not None
    for name, array in towers.encoder.arrays().items():
        np.testing.assert_array_equal(getattr(model.towers.encoder, name), array)
    past = np.array([4, 1], np.int32), np.ones(2, np.float32), np.zeros(2)
    np.testing.assert_array_equal(model.towers.user(*past, 0.0), towers.user(*past, 0.0))


def test_a_sequence_model_of_another_width_is_rejected(tmp_path: Path) -> None:
    towers = TowerArrays(
        np.ones((6, 3), np.float32), np.ones((6, 4), np.float32), encoder=an_encoder()
    )
    with pytest.raises(BadArtifact, match="differ in width"):
        load(published(tmp_path, a_model(towers=towers)))


def test_towers_of_different_shapes_are_rejected(tmp_path: Path) -> None:
    ages = np.ones(len(AGES_DAYS) + 1, np.float32)
    towers = TowerArrays(np.ones((6, 3), np.float32), np.ones((6, 3), np.float32), ages)
    with pytest.raises(BadArtifact, match="towers"):
        load(published(tmp_path, a_model(towers=towers)))


def test_ncf_loads_unchanged_and_is_optional(tmp_path: Path) -> None:
    before = some_ncf(6)
    after = load(published(tmp_path / "new", a_model(ncf=before)))[0].ncf
    assert after is not None
    for name in ("history", "targets", "hidden", "layers", "ages", "known"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert load(published(tmp_path / "old", a_model()))[0].ncf is None


@pytest.mark.parametrize("name", ["history", "targets", "hidden", "layers", "ages"])
def test_arrays_of_ncf_of_different_shapes_are_rejected(tmp_path: Path, name: str) -> None:
    array = getattr(some_ncf(6), name)
    wrong = replace(some_ncf(6), **{name: array[..., :-1]})
    with pytest.raises(BadArtifact, match="NCF"):
        load(published(tmp_path, a_model(ncf=wrong)))


def words(*shape: int, value: float = 1.0) -> WordVectors:
    return WordVectors(np.array(["camera", "usb"]), np.full(shape, value, np.float32))


def test_word_vectors_load_unchanged_and_are_optional(tmp_path: Path) -> None:
    model, _ = load(published(tmp_path / "new", a_model(words=words(2, 3))))
    assert model.words is not None
    assert model.words.index == {"camera": 0, "usb": 1}
    np.testing.assert_allclose(model.words.vector("A USB"), np.full(3, 1 / np.sqrt(3)), rtol=1e-6)
    assert load(published(tmp_path / "old", a_model()))[0].words is None


def test_als_and_content_may_be_missing(tmp_path: Path) -> None:
    model, _ = load(published(tmp_path, a_model(factors=None, content=None)))
    assert model.factors is None
    assert model.content is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"popularity": np.ones(5, np.float32)}, "rows"),
        ({"factors": np.full((6, 4), np.nan, np.float32)}, "NaN"),
        ({"neighbour_items": np.full((6, 2), 6, np.int32)}, "range"),
        ({"words": words(2, 3, value=np.nan)}, "NaN"),
        ({"words": words(3, 3)}, "differ in shape"),
        ({"words": words(2, 4)}, "differ in shape"),
        ({"words": words(2)}, "differ in shape"),
        (
            {"words": WordVectors(cast(Any, np.arange(2)), np.ones((2, 3), np.float32))},
            "differ in shape",
        ),
        ({"words": words(2, 3), "content": None}, "differ in shape"),
    ],
)
def test_an_invalid_model_is_rejected(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(BadArtifact, match=problem):
        load(published(tmp_path, a_model(**changes)))


@pytest.mark.parametrize("name", ["als_item_factors", "content_words", "content_word_vectors"])
def test_a_damaged_file_is_rejected(tmp_path: Path, name: str) -> None:
    folder = published(tmp_path, a_model(words=words(2, 3)))
    path = folder / f"{name}.npy"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BadArtifact, match="damaged"):
        load(folder)

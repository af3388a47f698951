"""Rankers score as they were trained to, and contributions add up to the score."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from afterclick.arrays import FloatArray
from afterclick.errors import BadArtifact
from afterclick.features import FEATURE_NAMES, FEATURES, PARTS
from afterclick.ranking import FormulaRanker, Ranker, best_rows
from afterclick.tree_ranker import FILE, TreeRanker, load_ranker
from training.config import RankerConfig
from training.models import oblivious_trees

CONFIG = RankerConfig(trees=40, depth=4, seed=1)


def rows(count: int, seed: int = 3) -> FloatArray:
    """Random feature rows with missing values and trends at their minimum."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(count, len(FEATURE_NAMES))).astype(np.float32)
    found[rng.random(found.shape) < 0.2] = np.nan
    found[rng.random(found.shape) < 0.1] = -200.0
    return found


def wanted(x: FloatArray) -> FloatArray:
    """Gains made of the first feature (model) and the fourth (history)."""
    return (np.nan_to_num(x[:, 0]) + np.nan_to_num(x[:, 3]) > 0.5).astype(np.float32)


def groups(x: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.full(len(x) // 20, 20, np.int32)


@cache
def trained() -> TreeRanker:
    x = rows(2000)
    return oblivious_trees.fit(x, wanted(x), groups(x), CONFIG)[0]


def without(ranker: TreeRanker, *names: str) -> TreeRanker:
    """The same with trees that do not use these features."""
    keep = ~np.isin(ranker.features, names).any(axis=1)
    return TreeRanker(ranker.features[keep], ranker.borders[keep], ranker.parts[:, keep])


@pytest.mark.parametrize("ranker", [FormulaRanker(), trained()], ids=["formula", "trees"])
def test_parts_add_up_to_the_score(ranker: Ranker) -> None:
    x = rows(300, seed=9)
    scores, receipt = ranker.score(x), ranker.contributions(x)
    assert np.abs(sum(receipt.values()) - scores).max() < 1e-12
    assert set(PARTS) <= set(receipt)
    assert len(np.unique(scores)) > 50
    assert all(np.isfinite(part).all() for part in receipt.values())


def test_scores_are_those_of_catboost() -> None:
    """Also at the borders, and of NaN in a column that had none in training."""
    x = rows(2000)
    x[:, 2] = np.nan_to_num(x[:, 2])
    model = oblivious_trees.boost(x, wanted(x), groups(x), CONFIG)
    ranker, other = oblivious_trees.exported(model), rows(400, seed=11)
    for name, border in zip(ranker.features.ravel(), ranker.borders.ravel(), strict=True):
        other[::7, FEATURE_NAMES.index(name)] = border
    assert np.isnan(other[:, 2]).any()
    np.testing.assert_allclose(ranker.score(other), model.predict(other), rtol=0, atol=1e-12)


def test_trees_of_fewer_levels_are_those_of_catboost() -> None:
    x = np.zeros((400, len(FEATURE_NAMES)), np.float32)
    x[::3, 5] = 1.0
    model = oblivious_trees.boost(x, 1.0 + x[:, 5], groups(x), replace(CONFIG, columns=1.0))
    ranker = oblivious_trees.exported(model)
    np.testing.assert_allclose(ranker.score(x), model.predict(x), rtol=0, atol=1e-12)
    used, receipt = dict(FEATURES)[FEATURE_NAMES[5]], ranker.contributions(x)
    assert len(np.unique(receipt.pop(used))) == 2
    assert all(len(np.unique(part)) == 1 for part in receipt.values())


def test_an_unknown_value_is_the_lowest() -> None:
    x = np.nan_to_num(rows(2000), nan=1.0)
    x[::2, 1] = np.nan
    gains = (np.isnan(x[:, 1]) | (x[:, 2] > 0.5)).astype(np.float32)
    ranker = oblivious_trees.fit(x, gains, groups(x), CONFIG)[0]
    known = x[1:2].repeat(4, axis=0)
    known[:, 2] = -1e9
    known[1, 1], known[2, 1], known[3, 2] = np.nan, -1e9, np.nan
    scores = ranker.score(known)
    assert scores[1] > scores[0] + 0.1
    assert scores[2] < scores[1]  # training has told unknown from low
    assert scores[3] == scores[0]


def test_parts_follow_each_level_from_the_root() -> None:
    """Compared with the means of the leaves that are still possible."""
    rng = np.random.default_rng(4)
    features = rng.integers(0, len(FEATURES), (3, 4)).astype(np.int32)
    values, weights = rng.normal(size=(3, 16)), rng.uniform(1, 9, (3, 16))
    found = oblivious_trees.leaf_parts(features, values, weights)
    for tree in range(3):
        for leaf in range(16):
            expected, before = np.zeros(len(PARTS) + 1), 0.0
            for known in range(5):
                same = [n for n in range(16) if n % (1 << known) == leaf % (1 << known)]
                after = np.average(values[tree, same], weights=weights[tree, same])
                part = PARTS.index(FEATURES[features[tree, known - 1]][1]) if known else -1
                expected[part] += after - before
                before = after
            np.testing.assert_allclose(found[:, tree, leaf], expected, atol=1e-12)


def test_contributions_name_the_features_that_matter() -> None:
    receipt = trained().contributions(rows(300, seed=5))
    assert np.abs(receipt["model"]).mean() > 3 * np.abs(receipt["content"]).mean()


@pytest.mark.parametrize("count", [5, 40, 400])
def test_the_best_rows_have_their_contributions(count: int) -> None:
    ranker, x = trained(), rows(count, seed=2)
    top, receipt = best_rows(ranker, x, 10)
    scores = ranker.score(x)
    np.testing.assert_array_equal(scores[top], np.sort(scores)[::-1][:10])
    assert np.abs(sum(receipt.values()) - scores[top]).max() < 1e-12


def test_no_rows_have_no_scores() -> None:
    ranker, x = trained(), rows(0)
    assert len(ranker.score(x)) == 0
    assert {len(part) for part in ranker.contributions(x).values()} == {0}


def test_a_ranker_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert isinstance(load_ranker(tmp_path), FormulaRanker)
    trained().write(tmp_path / FILE)
    found, x = load_ranker(tmp_path), rows(100)
    assert np.array_equal(found.score(x), trained().score(x))


def test_an_invalid_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / FILE
    trained().write(path)
    whole = path.read_bytes()
    for content in (b"", b"no arrays", whole[: len(whole) // 2], whole[:-100]):
        path.write_bytes(content)
        with pytest.raises(BadArtifact, match=r"ranker\.npz: is not a ranker .*; train again"):
            TreeRanker.read(path)
    np.savez(path, features=trained().features, borders=trained().borders)
    with pytest.raises(BadArtifact, match="parts"):
        TreeRanker.read(path)


def test_arrays_that_do_not_fit_together_are_rejected() -> None:
    made = trained()
    deep, trees = made.features.repeat(3, axis=1)[:, :9], len(made.features)
    for changed in (
        {"features": deep, "borders": np.zeros((trees, 9)), "parts": np.zeros((5, trees, 512))},
        {"borders": made.borders[:, :-1]},
        {"parts": made.parts[:, :-1]},
        {"parts": made.parts[:-1]},
        {"parts": made.parts[:, :, :-1]},
        {"features": made.features[0]},
    ):
        with pytest.raises(BadArtifact, match="do not fit together; train again"):
            replace(made, **changed)


def test_a_ranker_with_other_features_is_rejected() -> None:
    with pytest.raises(BadArtifact, match="unknown features f0; train again"):
        replace(trained(), features=np.full_like(trained().features, "f0"))


def test_a_ranker_without_the_newest_feature_is_accepted() -> None:
    older, x = without(trained(), "cosine_max", "trend_week"), rows(300, seed=9)
    other = x.copy()
    other[:, [FEATURE_NAMES.index(name) for name in ("cosine_max", "trend_week")]] = 7.0
    assert 0 < len(older.features) < len(trained().features)
    assert np.array_equal(older.score(x), older.score(other))
    assert not np.array_equal(trained().score(x), trained().score(other))

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
from afterclick.kernels import MAX_LEAVES
from afterclick.ranking import FormulaRanker, Ranker
from afterclick.tree_ranker import ARRAYS, FILE, TreeRanker, load_ranker
from training.config import RankerConfig
from training.models import boosted_trees

CONFIG = RankerConfig(trees=40, leaves=15, min_rows=20, seed=1)


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
    return boosted_trees.fit(x, wanted(x), groups(x), CONFIG)[0]


def without(ranker: TreeRanker, *names: str) -> TreeRanker:
    """The same with trees that do not use these features."""
    keep = ~np.isin(ranker.features, names).any(axis=1)
    arrays = {name: getattr(ranker, name) for name in ARRAYS}
    kept = {name: array[keep] for name, array in arrays.items() if name != "parts"}
    return TreeRanker(**kept, parts=ranker.parts[:, keep])


@pytest.mark.parametrize("ranker", [FormulaRanker(), trained()], ids=["formula", "trees"])
def test_parts_add_up_to_the_score(ranker: Ranker) -> None:
    x = rows(300, seed=9)
    scores, receipt = ranker.score(x), ranker.contributions(x)
    assert np.abs(sum(receipt.values()) - scores).max() < 1e-12
    assert set(PARTS) <= set(receipt)
    assert len(np.unique(scores)) > 50
    assert all(np.isfinite(part).all() for part in receipt.values())


def test_scores_are_those_of_lightgbm() -> None:
    """Also at the borders, and of NaN in columns that had none in training."""
    x = rows(2000)
    x[:, 2:4] = np.nan_to_num(x[:, 2:4])
    x[:, 3] += 10.0  # NaN, which LightGBM then reads as 0, is below every border
    booster = boosted_trees.boost(x, wanted(x), groups(x), CONFIG)
    ranker, other = boosted_trees.exported(booster), rows(400, seed=11)
    for name, border in zip(ranker.features.ravel(), ranker.borders.ravel(), strict=True):
        other[::7, FEATURE_NAMES.index(name)] = border
    assert np.isnan(other[:, 2:4]).any(axis=0).all()
    assert set(FEATURE_NAMES[2:4]) <= set(ranker.features.ravel().tolist())
    np.testing.assert_allclose(ranker.score(other), booster.predict(other), rtol=0, atol=1e-12)


def test_trees_of_one_leaf_and_of_the_most_leaves_are_those_of_lightgbm() -> None:
    x = rows(4000)
    for gains, leaves in ((np.zeros(len(x), np.float32), 1), (wanted(x), MAX_LEAVES)):
        config = replace(CONFIG, leaves=MAX_LEAVES, min_rows=5)
        booster = boosted_trees.boost(x, gains, groups(x), config)
        ranker = boosted_trees.exported(booster)
        assert ranker.parts.shape[2] == leaves
        np.testing.assert_allclose(ranker.score(x), booster.predict(x), rtol=0, atol=1e-12)


def test_training_may_tell_unknown_values_from_low_ones() -> None:
    x = np.nan_to_num(rows(2000), nan=1.0)
    x[::2, 1] = np.nan
    gains = (np.isnan(x[:, 1]) | (x[:, 2] > 0.5)).astype(np.float32)
    ranker = boosted_trees.fit(x, gains, groups(x), CONFIG)[0]
    known = x[1:2].repeat(3, axis=0)
    known[:, 2], known[1, 1], known[2, 1] = -1e9, np.nan, -1e9
    scores = ranker.score(known)
    assert scores[1] > scores[0] + 0.1
    assert scores[2] < scores[1]


def test_parts_follow_each_split_from_the_root() -> None:
    """Compared with a walk through LightGBM's own nodes."""
    x = rows(2000)
    booster = boosted_trees.boost(x, wanted(x), groups(x), CONFIG)
    receipt = boosted_trees.exported(booster).contributions(x[:20])
    for number, row in enumerate(np.nan_to_num(x[:20], nan=-1e30)):
        expected = dict.fromkeys((*PARTS, "base"), 0.0)
        for tree in booster.dump_model()["tree_info"]:
            node = tree["tree_structure"]
            expected["base"] += node["internal_value"]
            while "leaf_value" not in node:
                value, column = node["internal_value"], node["split_feature"]
                unknown = np.isnan(x[number, column])
                left = node["default_left"] if unknown else row[column] <= node["threshold"]
                node = node["left_child" if left else "right_child"]
                expected[FEATURES[column][1]] += node.get("leaf_value", node.get("internal_value"))
                expected[FEATURES[column][1]] -= value
        for part, value in expected.items():
            assert abs(receipt[part][number] - value) < 1e-12


def test_contributions_name_the_features_that_matter() -> None:
    receipt = trained().contributions(rows(300, seed=5))
    assert np.abs(receipt["model"]).mean() > 3 * np.abs(receipt["content"]).mean()


@pytest.mark.parametrize("count", [5, 40, 400])
def test_the_best_rows_have_their_contributions(count: int) -> None:
    ranker, x = trained(), rows(count, seed=2)
    top, receipt = ranker.best(x, 10)
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
    with pytest.raises(BadArtifact, match="above is not a file"):
        TreeRanker.read(path)


def test_arrays_that_do_not_fit_together_are_rejected() -> None:
    made = trained()
    for changed in (
        {"borders": made.borders[:, :-1]},
        {"above": made.above[:-1]},
        {"unknown_above": made.unknown_above[:, :-1]},
        {"parts": made.parts[:, :-1]},
        {"parts": made.parts[:-1]},
        {"parts": made.parts[:, :, :-1]},
        {"parts": made.parts.repeat(3, axis=2)},
        {"parts": made.parts[:, :, :0]},
        {"features": made.features[0]},
    ):
        with pytest.raises(BadArtifact, match="do not fit together; train again"):
            replace(made, **changed)


def test_nodes_that_leave_no_leaf_are_rejected() -> None:
    """The kernel reads without checking bounds."""
    made = trained()
    with pytest.raises(BadArtifact, match="do not fit together; train again"):
        replace(made, above=np.zeros_like(made.above))
    with pytest.raises(BadArtifact, match="do not fit together; train again"):
        replace(made, above=np.full_like(made.above, 1 << (MAX_LEAVES - 1)))


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

"""Contributions add up to the score under every ranker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest

from afterclick.arrays import FloatArray
from afterclick.errors import BadArtifact
from afterclick.features import FEATURE_NAMES, FEATURES, PARTS
from afterclick.ranking import FormulaRanker
from serving.state.loaded_ranker import (
    FILE,
    Booster,
    ExplainableRanker,
    TreeRanker,
    leaf_parts,
    load_ranker,
)


def rows(count: int, seed: int = 3) -> FloatArray:
    """Random feature rows with missing values and trends at their minimum."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(count, len(FEATURE_NAMES))).astype(np.float32)
    found[rng.random(found.shape) < 0.2] = np.nan
    found[rng.random(found.shape) < 0.1] = -200.0
    return found


def trained(names: list[str] | None = None) -> str:
    """The text of a trained LambdaMART model."""
    names = names or list(FEATURE_NAMES)
    x = rows(2000)[:, : len(names)]
    wanted = np.nan_to_num(x[:, 0]) + np.nan_to_num(x[:, 3]) > 0.5
    data = lightgbm.Dataset(
        x, wanted.astype(int), group=[20] * 100, feature_name=names or list(FEATURE_NAMES)
    )
    parameters = {
        "objective": "lambdarank",
        "verbose": -1,
        "num_threads": 1,
        "seed": 1,
        "num_leaves": 15,
    }
    return str(lightgbm.train(parameters, data, 40).model_to_string())


@pytest.mark.parametrize(
    "ranker", [FormulaRanker(), TreeRanker(trained())], ids=["formula", "trees"]
)
def test_parts_add_up_to_the_score(ranker: ExplainableRanker) -> None:
    x = rows(300, seed=9)
    scores, receipt = ranker.score(x), ranker.contributions(x)
    assert np.abs(sum(receipt.values()) - scores).max() < 1e-6
    assert set(PARTS) <= set(receipt)
    assert len(np.unique(scores)) > 50
    assert all(np.isfinite(part).all() for part in receipt.values())


def test_the_library_and_the_package_give_the_same_scores() -> None:
    text, x = trained(), rows(200, seed=11)
    assert np.array_equal(Booster(text).score(x), lightgbm.Booster(model_str=text).predict(x))


def test_a_missing_value_goes_where_training_has_sent_it() -> None:
    """Also NaN in a column that had none in training: LightGBM reads it as 0."""
    x = np.nan_to_num(rows(2000), nan=1.0)
    x[::2, 1] = np.nan
    wanted = (np.isnan(x[:, 1]) | (x[:, 2] > 0.5)).astype(int)
    data = lightgbm.Dataset(x, wanted, group=[20] * 100, feature_name=list(FEATURE_NAMES))
    options = {"objective": "lambdarank", "verbose": -1, "num_threads": 1, "seed": 1}
    text = str(lightgbm.train(options, data, 20).model_to_string())
    known = x[1:2].repeat(3, axis=0)
    known[:, 2] = -1.0
    known[1, 1], known[2, 2] = np.nan, np.nan
    zero = known.copy()
    zero[2, 2] = 0.0
    scores = TreeRanker(text).score(known)
    assert scores[1] > scores[0] + 0.1
    assert np.array_equal(scores, TreeRanker(text).score(zero))
    assert np.array_equal(scores, lightgbm.Booster(model_str=text).predict(known))


def test_an_invalid_model_text_is_rejected() -> None:
    for text in ("", "no model", trained()[:2000]):
        with pytest.raises(BadArtifact):
            TreeRanker(text)


def test_a_tree_attributes_score_changes_to_feature_groups() -> None:
    x = rows(300, seed=5)
    receipt = TreeRanker(trained()).contributions(x)
    # the label was made of the first feature (model) and the fourth (history)
    assert np.abs(receipt["model"]).mean() > 3 * np.abs(receipt["content"]).mean()


@pytest.mark.parametrize("count", [40, 400])
def test_the_best_rows_have_their_contributions(count: int) -> None:
    ranker, x = TreeRanker(trained()), rows(count, seed=2)
    top, receipt = ranker.best(x, 10)
    assert np.abs(sum(receipt.values()) - ranker.score(x)[top]).max() < 1e-6
    assert (np.diff(ranker.score(x)[top]) < 1e-9).all()
    assert all(
        np.array_equal(part, receipt[name]) for name, part in ranker.contributions(x[top]).items()
    )


def test_parts_follow_each_split_from_the_root() -> None:
    """Compared with walking each tree of the model that the package dumps."""
    text = trained()
    of = [PARTS.index(dict(FEATURES)[name]) for name in FEATURE_NAMES]
    found = leaf_parts(text, of, len(PARTS))

    def walk(node: dict[str, Any], path: list[float], tree: int) -> None:
        if "leaf_index" in node:
            assert np.allclose(found[tree, node["leaf_index"]], path, atol=1e-6)
            return
        for child in (node["left_child"], node["right_child"]):
            below, value = list(path), child.get("internal_value", child.get("leaf_value"))
            below[of[node["split_feature"]]] += value - node["internal_value"]
            walk(child, below, tree)

    for at, tree in enumerate(lightgbm.Booster(model_str=text).dump_model()["tree_info"]):
        root = tree["tree_structure"]
        walk(root, [0.0] * len(PARTS) + [root["internal_value"]], at)


def test_a_constant_tree_contributes_to_the_base_only() -> None:
    x = np.zeros((100, len(FEATURE_NAMES)), np.float32)
    data = lightgbm.Dataset(x, np.arange(100) % 2, feature_name=list(FEATURE_NAMES))
    stump = lightgbm.train({"objective": "regression", "verbose": -1}, data, 1).model_to_string()
    receipt = TreeRanker(stump).contributions(x[:3])
    assert receipt["base"] == pytest.approx([0.5] * 3)
    assert not any(receipt[part].any() for part in PARTS)


def test_a_ranker_with_other_features_is_rejected() -> None:
    names = [f"f{i}" for i in range(len(FEATURE_NAMES))]
    with pytest.raises(BadArtifact, match="train again"):
        TreeRanker(trained(names=names))


def test_without_a_ranker_the_formula_ranks(tmp_path: Path) -> None:
    assert isinstance(load_ranker(tmp_path), FormulaRanker)
    (tmp_path / FILE).write_text(trained())
    assert isinstance(load_ranker(tmp_path), TreeRanker)


def test_a_ranker_without_the_newest_feature_is_accepted() -> None:
    older = [name for name in FEATURE_NAMES if name not in {"cosine_max", "trend_week"}]
    ranker, x = TreeRanker(trained(names=older)), rows(300, seed=9)
    columns = [FEATURE_NAMES.index(name) for name in older]
    assert np.array_equal(ranker.score(x), Booster(trained(names=older)).score(x[:, columns]))
    assert np.abs(sum(ranker.contributions(x).values()) - ranker.score(x)).max() < 1e-6


def test_the_cascade_selects_the_items_of_the_full_ranker() -> None:
    ranker, found = TreeRanker(trained()), []
    for seed in range(20):
        x = rows(400, seed=seed)
        all_trees = np.sort(ranker.score(x))[-10:]
        found.append(np.isin(ranker.score(x)[ranker.best(x, 10)[0]], all_trees).mean())
    assert np.mean(found) > 0.9

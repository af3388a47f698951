"""Oblivious trees learned by CatBoost, as the arrays that serving reads.

The loss is that of a choice: the logarithm of a softmax over the candidates of a query
(QuerySoftMax), so the difference of two scores is the log-odds that one is chosen over the other.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from afterclick.arrays import Float64Array, FloatArray, IntArray
from afterclick.features import FEATURE_NAMES, FEATURES, PARTS
from afterclick.tree_ranker import RECEIPT, TreeRanker
from training.config import RankerConfig

if TYPE_CHECKING:
    import catboost

_LEAST_WEIGHT = 1e-9
"""Of a leaf that no training row reaches, so that every mean is defined."""


def fit(
    rows: FloatArray, gains: FloatArray, groups: IntArray, config: RankerConfig
) -> tuple[TreeRanker, Float64Array]:
    """Learn from feature rows (r, F) with gains (r,) ≥ 0, grouped by query (g,).

    Returns the ranker, and the share of each feature (F,) in the change of predictions.
    """
    model = boost(rows, gains, groups, config)
    importance = np.asarray(model.get_feature_importance(type="PredictionValuesChange"))
    return exported(model), importance / max(importance.sum(), 1e-9)


def boost(
    rows: FloatArray, gains: FloatArray, groups: IntArray, config: RankerConfig
) -> catboost.CatBoost:
    """CatBoost's own model."""
    import catboost  # takes seconds: the first model is published before

    table = catboost.Pool(
        rows,
        gains,
        group_id=np.repeat(np.arange(len(groups)), groups),
        feature_names=list(FEATURE_NAMES),
    )
    parameters = {
        "loss_function": "QuerySoftMax",
        "boosting_type": "Plain",
        "grow_policy": "SymmetricTree",
        "iterations": config.trees,
        "depth": config.depth,
        "learning_rate": config.learning_rate,
        "l2_leaf_reg": config.l2,
        "border_count": config.borders,
        "rsm": config.columns,
        "leaf_estimation_iterations": config.leaf_steps,
        "bootstrap_type": "Bernoulli",
        "subsample": 0.8,
        "sampling_frequency": "PerTree",
        "random_strength": 0,
        "nan_mode": "Min",
        "random_seed": config.seed,
        "thread_count": config.threads,
        "allow_writing_files": False,
        "logging_level": "Silent",
    }
    model = catboost.CatBoost(parameters)
    return model.fit(table)


def exported(model: catboost.CatBoost) -> TreeRanker:
    """The arrays of a CatBoost model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.json"
        model.save_model(str(path), format="json")
        found = orjson.loads(path.read_bytes())
    trees = found["oblivious_trees"]
    levels = max((len(tree["splits"] or ()) for tree in trees), default=0)
    features = np.zeros((len(trees), levels), np.int32)
    borders = np.zeros((len(trees), levels), np.float32)
    values, weights = (
        np.array([_padded(tree[name], levels) for tree in trees]).reshape(len(trees), 1 << levels)
        for name in ("leaf_values", "leaf_weights")
    )
    for tree, content in enumerate(trees):
        for level, split in enumerate(content["splits"] or ()):
            features[tree, level] = split["float_feature_index"]
            borders[tree, level] = split["border"]
    scale, (bias,) = found["scale_and_bias"]
    parts = leaf_parts(features, values * scale, weights)
    parts[-1, :1] += bias
    return TreeRanker(np.array(FEATURE_NAMES)[features], borders, parts)


def _padded(leaves: list[Any], levels: int) -> Float64Array:
    """The leaves of a tree with fewer levels: those added have equal leaves on both sides."""
    return np.tile(leaves, (1 << levels) // len(leaves))


def leaf_parts(features: IntArray, values: Float64Array, weights: Float64Array) -> Float64Array:
    """(len(RECEIPT), t, 2^d) what a leaf adds to each part of the score.

    `features` (t, d): the column that a level compares; `values` and `weights` (t, 2^d) of the
    leaves. A level changes the expected value, the weighted mean of the leaves that are still
    possible; that of the whole tree is `base`.
    """
    trees, levels = features.shape
    part_of = np.array([PARTS.index(part) for _, part in FEATURES])[features]
    weights = np.maximum(weights, _LEAST_WEIGHT)
    parts = np.zeros((len(RECEIPT), trees, 1 << levels))
    before = np.average(values, axis=1, weights=weights, keepdims=True)
    parts[-1] = before
    for level in range(levels):
        known = (trees, -1, 2 << level)  # leaves by the bits of later levels, and those so far
        after = np.average(values.reshape(known), axis=1, weights=weights.reshape(known))
        change = np.tile(after - np.tile(before, 2), 1 << (levels - level - 1))
        np.add.at(parts, (part_of[:, level], np.arange(trees)), change)
        before = after
    return parts

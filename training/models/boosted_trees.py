"""Gradient-boosted trees learned by LightGBM, as the arrays that serving reads.

The loss is LambdaMART's: pairs of a query's candidates, weighted by the change of NDCG. The gain of
a target is the weight of the user's strongest action on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from afterclick.arrays import Float64Array, FloatArray, IntArray
from afterclick.features import FEATURE_NAMES, FEATURES, PARTS
from afterclick.kernels import ALL_LEAVES
from afterclick.tree_ranker import RECEIPT, TreeRanker
from training.config import RankerConfig

if TYPE_CHECKING:
    import lightgbm

_PART_OF = [PARTS.index(part) for _, part in FEATURES]
_MOST = float(np.finfo(np.float32).max)
_Node = Mapping[str, Any]
"""A node of LightGBM's dump: a split with two children, or a leaf."""


def fit(
    rows: FloatArray,
    gains: FloatArray,
    groups: IntArray,
    config: RankerConfig,
    weights: FloatArray | None = None,
) -> tuple[TreeRanker, Float64Array]:
    """Learn from feature rows (r, F) with gains (r,) ≥ 0, grouped by query (g,).

    `weights` (g,) of the queries; default: equal. Returns the ranker, and the share of each feature
    (F,) in the gain of the splits.
    """
    booster = boost(rows, gains, groups, config, weights)
    importance = np.asarray(booster.feature_importance("gain"), np.float64)
    return exported(booster), importance / max(importance.sum(), 1e-9)


def boost(
    rows: FloatArray,
    gains: FloatArray,
    groups: IntArray,
    config: RankerConfig,
    weights: FloatArray | None = None,
) -> lightgbm.Booster:
    """LightGBM's own model."""
    import lightgbm  # takes seconds: the first model is published before

    levels, label = np.unique(np.append(gains, 0.0), return_inverse=True)
    of_rows = None if weights is None else np.repeat(weights, groups)
    names = list(FEATURE_NAMES)
    table = lightgbm.Dataset(rows, label[:-1], weight=of_rows, group=groups, feature_name=names)
    parameters = {
        "objective": "lambdarank",
        "lambdarank_truncation_level": 20,
        "label_gain": levels.tolist(),
        "learning_rate": config.learning_rate,
        "num_leaves": config.leaves,
        "min_data_in_leaf": config.min_rows,
        "feature_fraction": config.columns,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "seed": config.seed,
        "deterministic": True,
        "num_threads": config.threads,
        "verbose": -1,
    }
    return lightgbm.train(parameters, table, config.trees)


def exported(booster: lightgbm.Booster) -> TreeRanker:
    """The arrays of a LightGBM model."""
    trees = [_Tree(found["tree_structure"]) for found in booster.dump_model()["tree_info"]]
    leaves = max(tree.leaves for tree in trees)
    nodes = max(leaves - 1, 1)
    return TreeRanker(
        features=np.array(
            [[FEATURE_NAMES[column] for column in tree.columns(nodes)] for tree in trees]
        ),
        borders=np.array([_padded(tree.borders, nodes, np.inf) for tree in trees], np.float32),
        above=np.array([_padded(tree.above, nodes, ALL_LEAVES) for tree in trees], np.uint32),
        unknown_above=np.array([_padded(tree.unknown_above, nodes, False) for tree in trees]),
        parts=np.stack([tree.parts(leaves) for tree in trees], axis=1),
    )


class _Tree:
    """The nodes of one tree, and what each of its leaves, numbered from the left, adds."""

    def __init__(self, root: _Node) -> None:
        self.splits: list[int] = []
        """The column that each node compares."""
        self.borders: list[np.float32] = []
        self.above: list[int] = []
        self.unknown_above: list[bool] = []
        self.leaves = 0
        self._changes: list[tuple[int, int, int, float]] = []
        """Part, first leaf, end of the leaves, and the change of the expected value."""
        self._expected = self._add(root)

    def columns(self, nodes: int) -> list[int]:
        """(nodes,) the columns; 0 pads."""
        return _padded(self.splits, nodes, 0)

    def parts(self, leaves: int) -> Float64Array:
        """(len(RECEIPT), leaves) what each leaf adds to each part of the score.

        A split changes the expected value, LightGBM's `internal_value`; that of the root is `base`.
        """
        found = np.zeros((len(RECEIPT), leaves))
        found[-1] = self._expected
        for part, first, end, change in self._changes:
            found[part, first:end] += change
        return found

    def _add(self, node: _Node) -> float:
        """Number the leaves below a node; its expected value."""
        if "leaf_value" in node:
            self.leaves += 1
            return float(node["leaf_value"])
        number, first = len(self.splits), self.leaves
        self.splits.append(node["split_feature"])
        self.borders.append(_float32_below(node["threshold"]))
        self.unknown_above.append(_unknown_above(node))
        self.above.append(ALL_LEAVES)
        below = self._add(node["left_child"])
        middle = self.leaves
        above = self._add(node["right_child"])
        self.above[number] = ALL_LEAVES ^ ((1 << middle) - (1 << first))
        expected, part = float(node["internal_value"]), _PART_OF[self.splits[number]]
        self._changes += [
            (part, first, middle, below - expected),
            (part, middle, self.leaves, above - expected),
        ]
        return expected


def _float32_below(border: float) -> np.float32:
    """The largest float32 that is not above a border: the same float32 values are above both."""
    found = np.float32(min(border, _MOST))  # a split of unknown and known values has 1e308
    return np.nextafter(found, np.float32(-np.inf)) if float(found) > border else found


def _unknown_above(node: _Node) -> bool:
    """Whether LightGBM counts NaN as above the border.

    A feature without NaN in training has no missing type; LightGBM then reads NaN as 0.
    """
    if node["missing_type"] == "NaN":
        return not node["default_left"]
    return bool(node["threshold"] < 0.0)


def _padded(values: list[Any], count: int, filler: Any) -> list[Any]:
    return values + [filler] * (count - len(values))

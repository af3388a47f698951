"""What each leaf of a LightGBM model adds to each part of a receipt, read from the model's own
text.

What a split changes of the expected value goes to the part of the feature it splits on (Saabas,
2014); what is left, the expected value itself, is `base`. All trees are walked at once, one node
of each at a time: as LightGBM numbers them, a node comes after its parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from afterclick.arrays import Float64Array, Int64Array

_ARRAYS = ("split_feature", "left_child", "right_child", "internal_value", "leaf_value")


def feature_names(text: str) -> list[str]:
    """The features a model learned from, in its order."""
    return text.partition("\nfeature_names=")[2].partition("\n")[0].split()


def leaf_parts(text: str, part_of: Sequence[int], parts: int) -> Float64Array:
    """(trees, leaves, parts + 1) what a leaf adds to each part; the last column is `base`.

    `part_of`: the part of each feature.
    """
    trees = [_arrays(tree) for tree in text.split("\nTree=")[1:]]
    split, left, right, inner, leaves = (
        _stacked([tree[name] for tree in trees]) for name in _ARRAYS
    )
    nodes = np.array([len(tree["left_child"]) for tree in trees])
    forest = _Forest(
        part=np.array(part_of)[split.astype(np.int64)],
        inner=inner,
        leaves=leaves,
        paths=np.zeros((*split.shape, parts + 1)),
        out=np.zeros((*leaves.shape, parts + 1)),
    )
    forest.out[nodes == 0, 0, -1] = leaves[nodes == 0, 0]
    forest.paths[:, :1, -1] = inner[:, :1]
    for node in range(split.shape[1]):
        rows = np.flatnonzero(node < nodes)
        for child in (left, right):
            forest.descend(rows, node, child[rows, node].astype(np.int64))
    return forest.out


@dataclass(frozen=True)
class _Forest:
    """Trees (t, …) padded to the same number of nodes and leaves, and how far the walk has got."""

    part: Int64Array
    inner: Float64Array
    leaves: Float64Array
    paths: Float64Array
    """(t, nodes, parts + 1) what the way to a node adds to each part"""
    out: Float64Array
    """(t, leaves, parts + 1) the same of leaves"""

    def descend(self, rows: Int64Array, node: int, child: Int64Array) -> None:
        """Go from a node of the trees `rows` to a child of each: a negative one is the leaf −1 −
        child."""
        leaf = child < 0
        at = np.where(leaf, -1 - child, child)
        value = np.empty(len(rows))
        value[leaf] = self.leaves[rows[leaf], at[leaf]]
        value[~leaf] = self.inner[rows[~leaf], at[~leaf]]
        below = self.paths[rows, node]
        below[np.arange(len(rows)), self.part[rows, node]] += value - self.inner[rows, node]
        self.out[rows[leaf], at[leaf]] = below[leaf]
        self.paths[rows[~leaf], at[~leaf]] = below[~leaf]


def _arrays(tree: str) -> dict[str, Float64Array]:
    """The arrays of one tree; a tree of one leaf has no nodes."""
    found = dict.fromkeys(_ARRAYS, np.empty(0))
    for line in tree.split("\n"):
        name, _, values = line.partition("=")
        if name in found:
            found[name] = np.fromstring(values, sep=" ")
    return found


def _stacked(rows: Sequence[Float64Array]) -> Float64Array:
    """(rows, longest) padded with zeros."""
    out = np.zeros((len(rows), max(map(len, rows), default=0)))
    for at, row in enumerate(rows):
        out[at, : len(row)] = row
    return out

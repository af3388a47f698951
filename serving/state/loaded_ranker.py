"""Rank candidates by their features, with the contributions to each score.

reads   artifact  ranker.txt (LightGBM), if the model has one

A ranker returns scores (c,) and, for the best candidates, contributions by name. Contributions add
up to the score exactly, by construction: each split adds its change of the expected value to the
part of its feature (Saabas, 2014); the expected value itself is `base`.

LightGBM's C library is called without its Python package, whose import takes seconds and loads
pandas and scikit-learn, and which adds 0.1 ms to a prediction. The functions are those of
LightGBM's `c_api.h`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import Float64Array, FloatArray, Int64Array
from afterclick.errors import BadArtifact, Unavailable
from afterclick.features import FEATURE_NAMES, FEATURES, PARTS
from afterclick.ranking import Contributions, FormulaRanker
from afterclick.retrieval import top_k

FILE = "ranker.txt"
FIRST_STAGE_TREES = 4
"""One tree in this many, the first ones, selects the rows that all trees rank."""
SECOND_STAGE_PER_RESULT = 6
SECOND_STAGE_MIN = 64
"""Rows that the first stage selects: this many per result, and at least this many.

On real data, 400 candidates and 120 trees: 97.8 % of the ten items that all trees would choose,
and 99.8 % of the first, in 57 % of the time.
"""


class ExplainableRanker(Protocol):
    """Scores feature rows (c, F) and explains the scores by contributions."""

    def score(self, features: FloatArray) -> Float64Array:
        """(c,) higher is better."""
        ...

    def best(self, features: FloatArray, n: int) -> tuple[NDArray[np.intp], Contributions]:
        """The rows of the n highest scores, best first, and their contributions."""
        ...

    def contributions(self, features: FloatArray) -> Contributions:
        """Part → (c,); the parts add up to `score` of the same rows."""
        ...


class TreeRanker:
    """A LightGBM booster, with contributions from `leaf_parts`."""

    def __init__(self, text: str) -> None:
        self._booster = Booster(text)
        names = feature_names(text)
        if not set(names) <= set(FEATURE_NAMES):
            raise BadArtifact(f"{FILE}: has features unknown to this version; train again")
        # a ranker trained before a feature was added uses the features it knows
        self._columns = (
            None if names == list(FEATURE_NAMES) else [FEATURE_NAMES.index(n) for n in names]
        )
        self._parts = leaf_parts(
            text, [PARTS.index(dict(FEATURES)[name]) for name in names], len(PARTS)
        )
        self._values = self._parts.sum(axis=2)
        self._trees = np.arange(len(self._parts))
        self._first = max(1, len(self._trees) // FIRST_STAGE_TREES)

    def score(self, features: FloatArray) -> Float64Array:
        return self._booster.score(self._learned(features))

    def best(self, features: FloatArray, n: int) -> tuple[NDArray[np.intp], Contributions]:
        """The first trees select rows; all trees rank these."""
        rows, count = self._learned(features), max(SECOND_STAGE_PER_RESULT * n, SECOND_STAGE_MIN)
        few = len(rows) <= count
        chosen = (
            np.arange(len(rows)) if few else top_k(self._booster.score(rows, self._first), count)
        )
        leaves = self._booster.leaves(rows[chosen])
        top = top_k(self._values[self._trees, leaves].sum(axis=1), n)
        return chosen[top], self._contributions(leaves[top])

    def contributions(self, features: FloatArray) -> Contributions:
        return self._contributions(self._booster.leaves(self._learned(features)))

    def _contributions(self, leaves: NDArray[np.int64]) -> Contributions:
        """Contributions of rows with these leaves (rows, trees)."""
        parts = self._parts[self._trees, leaves].sum(axis=1)
        return {name: parts[:, i] for i, name in enumerate((*PARTS, "base"))}

    def _learned(self, features: FloatArray) -> FloatArray:
        """The columns the ranker was trained on, in its order."""
        return features if self._columns is None else features[:, self._columns]


def load_ranker(folder: Path) -> ExplainableRanker:
    """The ranker of a verified artifact; a FormulaRanker if it has none."""
    path = folder / FILE
    return TreeRanker(path.read_text()) if path.is_file() else FormulaRanker()


_FLOAT32: Final = 0
_NORMAL: Final = 0
_LEAF: Final = 2
_ONE_THREAD: Final = b"num_threads=1 verbosity=-1"


class Booster:
    """A trained model. Raises BadArtifact for an invalid text."""

    def __init__(self, text: str) -> None:
        self._handle = ctypes.c_void_p()
        if "\nend of trees\n" not in text:  # the library crashes on a truncated text
            raise BadArtifact("the ranker's text is not a complete LightGBM model; train again")
        self._library = _library()
        iterations = ctypes.c_int()
        _check(
            self._library.LGBM_BoosterLoadModelFromString(
                text.encode(), ctypes.byref(iterations), ctypes.byref(self._handle)
            )
        )
        self.trees = int(iterations.value)

    def __del__(self) -> None:
        if self._handle:
            self._library.LGBM_BoosterFree(self._handle)

    def score(self, features: FloatArray, trees: int = -1) -> NDArray[np.float64]:
        """(rows,) raw scores of (rows, columns) float32, by the first `trees` or by all."""
        return self._predict(features, _NORMAL, 1, trees)[:, 0]

    def leaves(self, features: FloatArray) -> NDArray[np.int64]:
        """(rows, trees) the leaf each row ends in."""
        return self._predict(features, _LEAF, self.trees).astype(np.int64)

    def _predict(
        self, features: FloatArray, kind: int, width: int, trees: int = -1
    ) -> NDArray[np.float64]:
        rows = np.ascontiguousarray(features, np.float32)
        out, length = np.empty((len(rows), width)), ctypes.c_int64()
        _check(
            self._library.LGBM_BoosterPredictForMat(
                self._handle,
                rows.ctypes.data_as(ctypes.c_void_p),
                _FLOAT32,
                ctypes.c_int32(rows.shape[0]),
                ctypes.c_int32(rows.shape[1]),
                1,
                kind,
                0,
                trees,
                _ONE_THREAD,
                ctypes.byref(length),
                out.ctypes.data_as(ctypes.c_void_p),
            )
        )
        return out


@cache
def _library() -> ctypes.CDLL:
    """The library, loaded once per process."""
    spec = find_spec("lightgbm")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    paths = sorted(folder.glob("lib*/*lightgbm.*")) if folder else []
    if not paths:
        raise Unavailable(
            "the package lightgbm is not installed: pip install 'afterclick[serving]'"
        )
    library = ctypes.CDLL(str(paths[0]))
    library.LGBM_GetLastError.restype = ctypes.c_char_p
    return library


def _check(code: int) -> None:
    if code != 0:
        raise BadArtifact(f"LightGBM: {_library().LGBM_GetLastError().decode(errors='replace')}")


_ARRAYS = ("split_feature", "left_child", "right_child", "internal_value", "leaf_value")


def feature_names(text: str) -> list[str]:
    """The features a model was trained on, in its order."""
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
    """Trees (t, …) padded to the same number of nodes and leaves, during the walk from their roots.

    LightGBM numbers a node after its parent, so one node of each tree is visited at a time.
    """

    part: Int64Array
    inner: Float64Array
    leaves: Float64Array
    paths: Float64Array
    """(t, nodes, parts + 1) what the path to each node adds to each part"""
    out: Float64Array
    """(t, leaves, parts + 1) the same for leaves"""

    def descend(self, rows: Int64Array, node: int, child: Int64Array) -> None:
        """Add the step from `node` to a child in each tree of `rows`; a negative child is the leaf
        −1 − child."""
        leaf = child < 0
        index = np.where(leaf, -1 - child, child)
        value = np.empty(len(rows))
        value[leaf] = self.leaves[rows[leaf], index[leaf]]
        value[~leaf] = self.inner[rows[~leaf], index[~leaf]]
        below = self.paths[rows, node]
        below[np.arange(len(rows)), self.part[rows, node]] += value - self.inner[rows, node]
        self.out[rows[leaf], index[leaf]] = below[leaf]
        self.paths[rows[~leaf], index[~leaf]] = below[~leaf]


def _arrays(tree: str) -> dict[str, Float64Array]:
    """The arrays of one tree; a tree of one leaf has no nodes."""
    arrays = dict.fromkeys(_ARRAYS, np.empty(0))
    for line in tree.split("\n"):
        name, _, values = line.partition("=")
        if name in arrays:
            arrays[name] = np.fromstring(values, sep=" ")
    return arrays


def _stacked(rows: Sequence[Float64Array]) -> Float64Array:
    """(rows, longest) padded with zeros."""
    out = np.zeros((len(rows), max(map(len, rows), default=0)))
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out

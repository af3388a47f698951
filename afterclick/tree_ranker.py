"""The learned ranker: an ensemble of regression trees as plain arrays.

reads   artifact  ranker.npz, if the model has one

The leaves of a tree are the bits of a number. A node whose feature is above its border removes the
leaves of its left side; the lowest bit that remains is the leaf of the row. No node waits for
another one, so a kernel compares all candidates with a node at once (QuickScorer: Lucchese et al.,
SIGIR 2015).

Contributions add up to the score exactly, by construction: each split adds its change of the
expected value to the part of its feature (Saabas, 2014); the expected value itself is `base`. They
are computed per leaf in training (training/models/boosted_trees.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import BoolArray, Float64Array, FloatArray, IndexArray, IntArray
from afterclick.errors import BadArtifact
from afterclick.features import FEATURE_NAMES, PARTS
from afterclick.kernels import ALL_LEAVES, MAX_LEAVES, Nodes, as_vector, leaf_sums, tree_leaves
from afterclick.ranking import Contributions, FormulaRanker, Ranker
from afterclick.retrieval import top_k

FILE = "ranker.npz"
RECEIPT = (*PARTS, "base")
"""The rows of `parts`."""
ARRAYS = ("features", "borders", "above", "unknown_above", "parts")


@dataclass(frozen=True, eq=False)
class TreeRanker:
    """t trees of s nodes and l ≤ 32 leaves. Raises BadArtifact for arrays that do not fit
    together."""

    features: NDArray[np.str_]
    """(t, s) name of the feature that a node compares"""
    borders: FloatArray
    """(t, s) a value is above or not"""
    above: NDArray[np.uint32]
    """(t, s) the leaves that remain for values above, as bits; all remain for other values"""
    unknown_above: BoolArray
    """(t, s) whether an unknown value (NaN) counts as above"""
    parts: Float64Array
    """(len(RECEIPT), t, l) what a leaf adds to each part of the score"""
    _nodes: Nodes = field(init=False, repr=False)
    used: frozenset[str] = field(init=False, repr=False)
    """Names of the features that nodes compare."""
    _values: Float64Array = field(init=False, repr=False)
    """(1, t, l) what a leaf adds to the score"""

    def __post_init__(self) -> None:
        names = set(self.features.ravel().tolist())
        object.__setattr__(self, "used", frozenset(names))
        unknown = sorted(map(str, names - set(FEATURE_NAMES)))
        if unknown:
            raise BadArtifact(f"{FILE}: unknown features {', '.join(unknown)}; train again")
        nodes = (self.features, self.borders, self.above, self.unknown_above)
        if not self._fits():
            shapes = ", ".join(str(array.shape) for array in nodes)
            raise BadArtifact(
                f"{FILE}: nodes {shapes} and parts {self.parts.shape} do not fit together; "
                "train again"
            )
        object.__setattr__(self, "parts", np.ascontiguousarray(self.parts, np.float64))
        arrays = (
            np.ascontiguousarray(self.columns, np.int32),
            as_vector(self.borders),
            np.ascontiguousarray(self.above, np.uint32),
            np.ascontiguousarray(self.unknown_above, np.bool_),
        )
        object.__setattr__(self, "_nodes", arrays)
        object.__setattr__(self, "_values", self.parts.sum(axis=0, keepdims=True))

    def _fits(self) -> bool:
        """Whether the shapes are those of the same trees, and every row ends in a leaf."""
        shape, parts = self.features.shape, self.parts.shape
        nodes = (self.borders, self.above, self.unknown_above)
        if len(shape) != 2 or any(array.shape != shape for array in nodes):
            return False
        if len(parts) != 3 or parts[:2] != (len(RECEIPT), shape[0]):
            return False
        last = np.bitwise_and.reduce(self.above, axis=1, initial=np.uint32(ALL_LEAVES))
        return 1 <= parts[2] <= MAX_LEAVES and bool((last & ((1 << parts[2]) - 1)).all())

    @property
    def columns(self) -> IntArray:
        """(t, s) column of each node's feature in FEATURES."""
        column = {name: number for number, name in enumerate(FEATURE_NAMES)}
        found = [column[name] for name in self.features.ravel().tolist()]
        return np.array(found, np.int32).reshape(self.features.shape)

    @classmethod
    def read(cls, path: Path) -> TreeRanker:
        """From a file of `write`. Raises BadArtifact."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{name: arrays[name] for name in ARRAYS})
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise BadArtifact(f"{path}: is not a ranker ({error}); train again") from None

    def write(self, path: Path) -> None:
        """Write the arrays as one file."""
        np.savez(path, **{name: getattr(self, name) for name in ARRAYS})

    def score(self, features: FloatArray) -> Float64Array:
        """(c,) scores of feature rows (c, F), higher is better."""
        return self._scores(self._leaves(features))

    def contributions(self, features: FloatArray) -> Contributions:
        """Part → (c,); the parts add up to `score` of the same rows."""
        return self._receipt(self._leaves(features), np.arange(len(features)))

    def best(self, features: FloatArray, n: int) -> tuple[IndexArray, Contributions]:
        """The rows of the n highest scores, best first, and their contributions."""
        leaves = self._leaves(features)
        top = top_k(self._scores(leaves), n)
        return top, self._receipt(leaves, top)

    def _leaves(self, features: FloatArray) -> NDArray[np.uint8]:
        """(t, c) the leaf of each tree that a row ends in."""
        return tree_leaves(as_vector(features.T), self._nodes)

    def _scores(self, leaves: NDArray[np.uint8]) -> Float64Array:
        every = np.arange(leaves.shape[1])
        return np.asarray(leaf_sums(leaves, every, self._values)[0])

    def _receipt(self, leaves: NDArray[np.uint8], rows: IndexArray) -> Contributions:
        return dict(zip(RECEIPT, leaf_sums(leaves, rows, self.parts), strict=True))


def load_ranker(folder: Path) -> Ranker:
    """The ranker of a verified artifact; a FormulaRanker if it has none. Raises BadArtifact."""
    path = folder / FILE
    return TreeRanker.read(path) if path.is_file() else FormulaRanker()

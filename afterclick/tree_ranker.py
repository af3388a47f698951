"""The learned ranker: an ensemble of oblivious trees as plain arrays.

reads   artifact  ranker.npz, if the model has one

All nodes of a level compare the same feature with the same border, so the leaf of a row is the
number whose bit d is the answer of level d. NaN is above no border: unknown values are the lowest
(CatBoost's `nan_mode` Min).

Contributions add up to the score exactly, by construction: each level adds its change of the
expected value to the part of its feature (Saabas, 2014); the expected value itself is `base`. They
are computed per leaf in training (training/models/oblivious_trees.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import Float64Array, FloatArray, IntArray
from afterclick.errors import BadArtifact
from afterclick.features import FEATURE_NAMES, PARTS
from afterclick.kernels import as_vector, tree_sums
from afterclick.ranking import Contributions, FormulaRanker, Ranker

FILE = "ranker.npz"
MAX_LEVELS = 8
"""The kernel counts leaves in one byte."""
RECEIPT = (*PARTS, "base")
"""The rows of `parts`."""


@dataclass(frozen=True, eq=False)
class TreeRanker:
    """t trees of d levels. Raises BadArtifact for arrays that do not fit together."""

    features: NDArray[np.str_]
    """(t, d) name of the feature that a level compares"""
    borders: FloatArray
    """(t, d) a level's bit is set for values above"""
    parts: Float64Array
    """(len(RECEIPT), t, 2^d) what a leaf adds to each part of the score"""
    columns: IntArray = field(init=False, repr=False)
    """(t, d) column of each level's feature in FEATURES"""
    _values: Float64Array = field(init=False, repr=False)
    """(1, t, 2^d) what a leaf adds to the score"""

    def __post_init__(self) -> None:
        names = set(self.features.ravel().tolist())
        unknown = sorted(map(str, names - set(FEATURE_NAMES)))
        if unknown:
            raise BadArtifact(f"{FILE}: unknown features {', '.join(unknown)}; train again")
        shape = self.features.shape
        if not self._fits():
            raise BadArtifact(
                f"{FILE}: features {shape}, borders {self.borders.shape} and parts "
                f"{self.parts.shape} do not fit together; train again"
            )
        column = {name: number for number, name in enumerate(FEATURE_NAMES)}
        columns = [[column[name] for name in tree] for tree in self.features.tolist()]
        object.__setattr__(self, "borders", as_vector(self.borders))
        object.__setattr__(self, "parts", np.ascontiguousarray(self.parts, np.float64))
        object.__setattr__(self, "columns", np.array(columns, np.int32).reshape(shape))
        object.__setattr__(self, "_values", self.parts.sum(axis=0, keepdims=True))

    def _fits(self) -> bool:
        """Whether the shapes are those of the same trees."""
        if self.features.ndim != 2 or self.features.shape[1] > MAX_LEVELS:
            return False
        trees, levels = self.features.shape
        expected = (len(RECEIPT), trees, 1 << levels)
        return self.borders.shape == self.features.shape and self.parts.shape == expected

    @classmethod
    def read(cls, path: Path) -> TreeRanker:
        """From a file of `write`. Raises BadArtifact."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(arrays["features"], arrays["borders"], arrays["parts"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise BadArtifact(f"{path}: is not a ranker ({error}); train again") from None

    def write(self, path: Path) -> None:
        """Write the arrays as one file."""
        np.savez(path, features=self.features, borders=self.borders, parts=self.parts)

    def score(self, features: FloatArray) -> Float64Array:
        """(c,) scores of feature rows (c, F), higher is better."""
        return np.asarray(self._sums(features, self._values)[0])

    def contributions(self, features: FloatArray) -> Contributions:
        """Part → (c,); the parts add up to `score` of the same rows."""
        return dict(zip(RECEIPT, self._sums(features, self.parts), strict=True))

    def _sums(self, features: FloatArray, tables: Float64Array) -> Float64Array:
        return tree_sums(as_vector(features.T), self.columns, self.borders, tables)


def load_ranker(folder: Path) -> Ranker:
    """The ranker of a verified artifact; a FormulaRanker if it has none. Raises BadArtifact."""
    path = folder / FILE
    return TreeRanker.read(path) if path.is_file() else FormulaRanker()

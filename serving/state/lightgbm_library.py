"""LightGBM's C library, without its Python package.

Importing `lightgbm` costs seconds and brings pandas and scikit-learn where they are installed; a
prediction through it costs a tenth of a millisecond more. The functions are those of LightGBM's
`c_api.h`.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import FloatArray
from afterclick.errors import BadArtifact, Unavailable

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
    found = sorted(folder.glob("lib*/*lightgbm.*")) if folder else []
    if not found:
        raise Unavailable(
            "the package lightgbm is not installed: pip install 'afterclick[serving]'"
        )
    library = ctypes.CDLL(str(found[0]))
    library.LGBM_GetLastError.restype = ctypes.c_char_p
    return library


def _check(code: int) -> None:
    if code != 0:
        raise BadArtifact(f"LightGBM: {_library().LGBM_GetLastError().decode(errors='replace')}")

"""Type aliases for arrays and JSON, defined once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
"""Item indices; -1 pads."""
IndexArray = NDArray[np.intp]
"""Row numbers that index another array."""
FloatArray = NDArray[np.float32]
"""Vectors, features and model arrays."""
Float64Array = NDArray[np.float64]
"""Scores, event times and sums."""
Int64Array = NDArray[np.int64]
"""Exact counts."""
BoolArray = NDArray[np.bool_]
AnyArray = NDArray[Any]
Json = dict[str, Any]
"""A JSON object."""

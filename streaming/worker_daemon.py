"""Spark's Python daemon with the workers' imports done: each fork starts at once and shares memory.

What is imported never becomes garbage: it is kept out of collections. Spark asks for one after each task, and
with all the imports in it that was a third of a worker's time.
"""

from __future__ import annotations

import gc

import pyspark.worker  # noqa: F401
from pyspark.daemon import manager

import streaming.archive
import streaming.live
import streaming.row  # noqa: F401

_ALLOCATIONS = 50_000

if __name__ == "__main__":
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS)
    manager()

"""Spark's Python daemon with the workers' imports done: each fork starts at once and shares memory.

What is imported never becomes garbage: it is kept out of collections, which Spark asks for after each task, and
which would otherwise touch it a thousand times a batch (a third of a worker's time).
"""

from __future__ import annotations

import gc

import pyspark.worker
from pyspark.daemon import manager

import streaming.archive
import streaming.live
import streaming.row  # noqa: F401

_ALLOCATIONS = 50_000

if __name__ == "__main__":
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS)
    manager()

"""Spark's Python daemon with the workers' imports done: each fork starts at once and shares memory."""

from __future__ import annotations

from pyspark.daemon import manager

import streaming.archive
import streaming.live
import streaming.row  # noqa: F401

if __name__ == "__main__":
    manager()

"""The pipeline of a small installation, on the Spark session of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from afterclick.settings import Settings
from training.pipeline import Pipeline

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture
def pipeline(spark: SparkSession, settings: Settings) -> Pipeline:
    """The pipeline of a small installation without a log."""
    small = settings.training.model_copy(
        update={"preset": "fast", "rank": 8, "iterations": 4, "holdout_queries": 200}
    )
    return Pipeline(settings.model_copy(update={"training": small}))

"""Spark's ALS beside `implicit`, at equal settings on the same rows: seconds, and quality on a time split."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pyspark.sql import SparkSession

from training import als, implicit_als
from training.als import AlsConfig, Factors
from training.als_quality import Exam

Progress = Callable[[str], None]


def compare(
    spark: SparkSession, exam: Exam, config: AlsConfig, progress: Progress = lambda _: None
) -> dict[str, Any]:
    """engine → `fit_seconds` and the metrics of training/als_quality.py, beside the settings they share."""
    engines: dict[str, Callable[[], Factors]] = {
        "implicit": lambda: implicit_als.fit(exam.known, config),
        "spark": lambda: als.fit(spark, exam.known, config),
    }
    found: dict[str, Any] = {}
    for name, fit in engines.items():
        progress(f"{name}: fitting")
        start = time.perf_counter()
        factors = fit()
        seconds = round(time.perf_counter() - start, 2)
        found[name] = {"fit_seconds": seconds, **exam.metrics(factors, config)}
        progress(f"{name}: {seconds} s, NDCG@10 {found[name]['ndcg@10']:.4f}")
    users, items = (len(set(column.tolist())) for column in (exam.known.user, exam.known.item))
    shape = {"users": users, "items": items, "interactions": len(exam.known)}
    return {**shape, "params": vars(config), "engines": found}

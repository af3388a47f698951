"""Names and values of the percentiles that benchmarks print."""

from __future__ import annotations

import math

from infra.benchmarks.freshness import QUANTILES
from infra.benchmarks.harness import percentiles


def test_percentiles_are_named_as_in_the_results() -> None:
    found = percentiles([float(ms) for ms in range(1001)], QUANTILES)
    assert found == {"p50": 500.0, "p95": 950.0, "p99": 990.0, "p999": 999.0, "max": 1000.0}


def test_without_values_every_percentile_is_nan() -> None:
    assert all(math.isnan(value) for value in percentiles([]).values())

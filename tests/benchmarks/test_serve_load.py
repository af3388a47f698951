"""A small run of `bench serve`: every response is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterclick.settings import RedisSettings, Settings
from infra.benchmarks.list_steps import STEPS
from infra.benchmarks.serve_load import ServeBenchmark


@pytest.mark.timeout(600)
def test_every_response_about_the_synthetic_shop_is_right(jars: Path) -> None:
    benchmark = ServeBenchmark(rate=40, seconds=2, saturate_s=1, items=8_000, users=60)
    figures = benchmark.run(Settings(jars=jars, redis=RedisSettings(timeout_s=10)))
    assert (figures["errors"], figures["first_error"]) == (0, None)
    assert figures["requests"] > 0
    assert figures["times_plain"] > 0
    fresh = figures["fresh"]
    assert (fresh["errors"], fresh["remembered"]) == (0, 0)
    assert set(fresh["steps_us"]) == set(STEPS)
    assert min(fresh["steps_us"].values()) > 0

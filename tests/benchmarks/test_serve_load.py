"""A small run of `bench serve`: every response is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterclick.errors import Unavailable
from afterclick.settings import RedisSettings, Settings
from infra.benchmarks.checkout import checkout_api
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


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fresh_lists_are_compared_with_those_of_another_checkout(jars: Path) -> None:
    """The other checkout is this one: both make the same lists, in processes of their own."""
    here = Path(__file__).parents[2]
    benchmark = ServeBenchmark(
        rate=20, seconds=1, saturate_s=1, items=4_000, users=40, plain=False, baseline=here
    )
    figures = benchmark.run(Settings(jars=jars, redis=RedisSettings(timeout_s=10)))
    baseline = figures["baseline"]
    assert baseline["rounds"] > 0
    for side in (baseline, baseline["ours"], baseline["ratio"]):
        assert min(side[name] for name in ("cpu_ms_per_request", "p50_ms", "max_rps")) > 0


def test_a_checkout_without_an_environment_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(Unavailable, match="make setup"),
        checkout_api(tmp_path, 10, 10, 1.0, tmp_path),
    ):
        pass

"""The soak benchmark: growth is told from noise, and a short run loses nothing."""

from __future__ import annotations

import numpy as np
import pytest

from afterclick.settings import Settings
from infra.benchmarks.soak import SoakBenchmark
from infra.benchmarks.soak_slopes import SizeSample, longest_life, slope

NOISE_MB = 3.0


def samples(mb_per_hour: float, of: int = 1, first_s: float = 0.0) -> list[SizeSample]:
    """Twenty minutes of samples."""
    rng = np.random.default_rng(3)
    return [
        SizeSample(t, 300.0 + mb_per_hour * t / 3600 + NOISE_MB * rng.normal(), of)
        for t in first_s + np.arange(0.0, 1200.0, 5.0)
    ]


@pytest.mark.parametrize("mb_per_hour", [0.0, 40.0])
def test_a_leak_is_told_from_noise(mb_per_hour: float) -> None:
    found = slope(samples(mb_per_hour))
    assert found.low <= mb_per_hour <= found.high
    assert (found.low > 0.0) == (mb_per_hour > 0.0)


def test_a_restart_is_no_growth() -> None:
    before, after = samples(0.0), samples(0.0, of=2, first_s=1200.0)
    lower = [each._replace(mb=each.mb - 200.0) for each in before[:60]]
    life = longest_life([*lower, *after])
    assert {each.of for each in life} == {2}
    assert life[0].time_s >= 1560.0  # without the first six minutes of the process


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_minute_with_a_kill_and_an_erasure_loses_nothing() -> None:
    benchmark = SoakBenchmark(minutes=1.0, events_per_s=10.0, kills=1, retrainings=0, erasures=1)
    figures = benchmark.run(Settings())
    assert (figures["lost"], figures["double"], figures["kills"]) == (0, 0, 1)
    assert figures["unacknowledged"] == figures["failed_erasures"] == 0
    assert figures["events"] > 100

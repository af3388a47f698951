"""A ranker that learns from served lists earns more clicks than one that learns from next items."""

from __future__ import annotations

import pytest

from infra.benchmarks.served_lists import ServedListsBenchmark


@pytest.mark.long
@pytest.mark.slow
def test_after_rounds_of_serving_and_training_the_learner_earns_more_clicks() -> None:
    plan = ServedListsBenchmark(rounds=4, shoppers=240, visits=4)
    figures = plan.run(print)
    first, *_, last = figures["rounds"]
    assert first["lift_percent"] == 0.0  # all arms begin with the same model
    assert figures["over"]["control"]["low_percent"] > 0.0, figures
    assert figures["over"]["frozen"]["low_percent"] > 0.0, figures
    assert last["learner_ctr_percent"] > first["learner_ctr_percent"], figures

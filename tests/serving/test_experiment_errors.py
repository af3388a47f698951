"""Error rates and power of experiments: simulated runs through the code that serves results.

Users enter over two weeks and act for a week from their first list; their habits differ. Every run
is looked at each day.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from afterclick.api import Decision, Metric
from afterclick.arrays import Int64Array
from serving.control.experiments import ArmSums, Experiment, ExperimentDraft, results

RUNS, ENTRY_DAYS, WINDOW = 200, 14, 7
ALPHA = 0.05
CLICKS_PER_DAY, BUYS_PER_DAY, HABIT = 0.2, 0.008, 0.7
"""`HABIT`: shape of the gamma distribution of users' rates; below 1 most users are rare."""
MOST = int(binom.ppf(0.99, RUNS, ALPHA))
"""False alarms in `RUNS` runs that an error rate of `ALPHA` exceeds once in a hundred times."""
Look = list[ArmSums]


def an_experiment(metric: Metric, arms: int, **plan: Any) -> Experiment:
    names = [{"name": f"arm-{n}"} for n in range(arms)]
    draft = {"name": "e", "metric": metric, "plan": plan, "days": WINDOW, "arms": names}
    return Experiment.of(ExperimentDraft.model_validate(draft))


@dataclass(frozen=True)
class Population:
    """`users` over all arms; `lift`: relative effect of each arm on clicks and purchases."""

    users: int
    lift: Sequence[float]

    def looks(self, rng: np.random.Generator) -> Iterator[Look]:
        """The sums of each arm at the end of each day."""
        arms = rng.integers(len(self.lift), size=self.users)
        entry = rng.integers(ENTRY_DAYS, size=self.users)
        taste = rng.gamma(HABIT, 1 / HABIT, self.users) * (1 + np.array(self.lift)[arms])
        days = np.arange(ENTRY_DAYS + WINDOW)
        active = (days >= entry[:, None]) & (days < entry[:, None] + WINDOW)
        clicks = (rng.poisson(CLICKS_PER_DAY * taste[:, None] * active)).cumsum(1)
        bought = (rng.poisson(BUYS_PER_DAY * taste[:, None] * active)).cumsum(1)
        for day in days:
            entered = entry <= day
            yield [
                _sums(clicks[entered & (arms == arm), day], bought[entered & (arms == arm), day])
                for arm in range(len(self.lift))
            ]


def _sums(clicks: Int64Array, bought: Int64Array) -> ArmSums:
    return ArmSums(
        users=len(clicks),
        lists=len(clicks),
        clicks=int(clicks.sum()),
        clicks_squared=int((clicks**2).sum()),
        buyers=int((bought > 0).sum()),
        purchases=int(bought.sum()),
    )


def decisions(experiment: Experiment, look: Look) -> list[Decision]:
    """What the API shows at this look, for the arms other than the control."""
    sums = {arm.name: arm_sums for arm, arm_sums in zip(experiment.arms, look, strict=True)}
    return [arm["decision"] for arm in results(experiment, sums, 1 - ALPHA)["arms"][1:]]


def alarms(experiment: Experiment, population: Population, seed: int) -> int:
    """Runs in which at least one look decides for or against at least one arm."""
    decided = {Decision.BETTER, Decision.WORSE}
    rng = np.random.default_rng(seed)
    return sum(
        any(decided & set(decisions(experiment, look)) for look in list(population.looks(rng)))
        for _ in range(RUNS)
    )


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("arms", [2, 3])
def test_equal_arms_looked_at_daily_are_decided_at_the_nominal_rate(
    metric: Metric, arms: int
) -> None:
    experiment = an_experiment(metric, arms, users=1000)
    false = alarms(experiment, Population(1000 * arms, [0.0] * arms), seed=1)
    assert false <= MOST, f"{false} of {RUNS}"


def fixed_horizon_p_value(control: ArmSums, arm: ArmSums) -> float:
    """The test of clicks per user for a single look, of a size that was fixed before."""
    one, other = control.sample(Metric.CLICKS), arm.sample(Metric.CLICKS)
    error = math.sqrt(one.variance / max(one.users, 1) + other.variance / max(other.users, 1))
    return 2 * NormalDist().cdf(-abs(other.mean - one.mean) / error) if error else 1.0


def test_a_p_value_for_one_look_errs_far_more_often_with_daily_looks() -> None:
    """The control of the test above: right at the last look alone, wrong at any look."""
    population, rng = Population(2000, [0.0, 0.0]), np.random.default_rng(1)
    at_last = at_any = 0
    for _ in range(RUNS):
        p_values = [fixed_horizon_p_value(look[0], look[1]) for look in population.looks(rng)]
        at_last += p_values[-1] <= ALPHA
        at_any += min(p_values) <= ALPHA
    assert at_last <= MOST, f"{at_last} of {RUNS}"
    assert at_any > 2 * MOST, f"{at_any} of {RUNS}"


def test_several_arms_without_a_correction_err_more_often() -> None:
    """Six arms: a p-value for one look and one arm, and the results of the API at every look."""
    population, rng = Population(3000, [0.0] * 6), np.random.default_rng(2)
    uncorrected = 0
    for _ in range(RUNS):
        *_, (control, *arms) = population.looks(rng)
        p_values = [fixed_horizon_p_value(control, arm) for arm in arms]
        uncorrected += min(p_values) <= ALPHA
    assert uncorrected > MOST, f"{uncorrected} of {RUNS}"
    false = alarms(an_experiment(Metric.CLICKS, 6, users=500), population, seed=2)
    assert false <= MOST, f"{false} of {RUNS}"


def mean_of(metric: Metric, lift: float) -> float:
    """The metric's expected value; users do not buy with probability E exp(-rate)."""
    if metric is Metric.CLICKS:
        return CLICKS_PER_DAY * WINDOW * (1 + lift)
    return 1.0 - float((1 + BUYS_PER_DAY * WINDOW * (1 + lift) / HABIT) ** -HABIT)


def plan_for(metric: Metric, lift: float) -> dict[str, float]:
    """The plan of somebody who knows the shop's figures of today."""
    baseline = mean_of(metric, 0.0)
    plan = {"baseline": baseline, "effect": mean_of(metric, lift) / baseline - 1}
    if metric is Metric.CLICKS:
        plan["deviation"] = math.sqrt(baseline + baseline**2 / HABIT)
    return plan


@pytest.mark.parametrize(("metric", "lift"), [(Metric.CLICKS, 0.25), (Metric.CONVERSION, 0.5)])
def test_an_effect_as_planned_is_decided_by_the_planned_size_with_the_planned_power(
    metric: Metric, lift: float
) -> None:
    experiment = an_experiment(metric, 2, **plan_for(metric, lift))
    planned, rng = experiment.test.planned, np.random.default_rng(3)
    assert 500 < planned < 5000
    better = early = 0
    for _ in range(RUNS):
        population = Population(2 * planned, [0.0, lift])
        found = [decisions(experiment, look)[0] for look in population.looks(rng)]
        assert Decision.WORSE not in found
        better += Decision.BETTER in found
        early += Decision.BETTER in found[:ENTRY_DAYS]
    assert better >= 0.8 * RUNS, f"{better} of {RUNS}"
    assert early > 0.5 * RUNS, f"{early} of {RUNS} decided while users still entered"

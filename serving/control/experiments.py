"""Experiments: a hash assigns each user to an arm; each arm makes lists with its own options.

reads, writes  sql  experiments
reads          sql  experiment_users, experiment_progress

The hash covers the experiment's salt and the user id: a user stays in an arm, in every process,
and experiments split users independently. A user is in at most one experiment: the oldest running
one whose traffic includes them. Visitors without an id are in none.

Results: sums over users in SQL → differences, p-values and decisions.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import Connection, case, func, insert, select, update

from afterclick.api import Decision, Metric, Policy, SamplingPolicy
from afterclick.arrays import Json
from afterclick.events import now
from serving.control.rules import Name, Text
from serving.control.significance import (
    SRM_LIMIT,
    Sample,
    SequentialTest,
    holm,
    sample_ratio_p_value,
)
from serving.control.store import experiment_progress, experiment_users, readable
from serving.control.store import experiments as table
from serving.request import Options

Part = Literal["model", "history", "trend", "content", "base", "popularity", "dislikes"]
Weight = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Users = Annotated[int, Field(ge=2, le=10**9)]
Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]


class Arm(BaseModel):
    """One variant. Omitted options have their defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    share: Annotated[float, Field(ge=0.001, le=1000, allow_inf_nan=False)] = Field(
        1.0, description="Share of the users, relative to the other arms."
    )
    policy: Policy = Policy.BLEND
    explore: Share = 0.0
    draw: SamplingPolicy = SamplingPolicy.UNIFORM
    diversity: Share = 0.0
    weights: dict[Part, Weight] = Field(
        {}, description="Factors for the contributions to the score."
    )
    model: Version | None = Field(
        None,
        description="The model version of its lists, loaded in addition to the serving model. If "
        "it is not available, the serving model is used and the response says why.",
    )

    @property
    def options(self) -> Options:
        weights = tuple(sorted(self.weights.items()))
        return Options(self.policy, self.explore, self.draw, self.diversity, weights, self.model)


class Plan(BaseModel):
    """How many users an arm needs: `users`, or what they are to show, with power 80 %."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    users: Users | None = Field(None, description="Users per arm; computed if omitted.")
    baseline: Positive | None = Field(None, description="The metric's value today.")
    effect: Positive | None = Field(
        None, description="The smallest change to detect, relative to `baseline`: 0.1 is 10 %."
    )
    deviation: Positive | None = Field(
        None,
        description="Standard deviation of the metric over users; of `conversion` it is known.",
    )

    def users_per_arm(self, metric: Metric, comparisons: int) -> int:
        """`users`, or their number by the rest. Raises ValueError where it is not determined."""
        if self.users is not None:
            return self.users
        if self.baseline is None or self.effect is None:
            raise ValueError("the plan needs `users`, or `baseline` and `effect`")
        variances = self._variances(metric, self.baseline, self.effect)
        test = SequentialTest(1, comparisons)
        users = test.users_for(variances, self.baseline * self.effect)
        if not 2 <= users <= 10**9:
            raise ValueError(f"the plan needs {users:,} users per arm: choose another `effect`")
        return users

    def _variances(self, metric: Metric, baseline: float, effect: float) -> float:
        """Of control and arm, summed."""
        if self.deviation is not None:  # it grows with the mean, as for counts of varied users
            return self.deviation**2 * (1 + (1 + effect) ** 2)
        if metric is not Metric.CONVERSION:
            raise ValueError(f"the plan of {metric} needs `users`, or also `deviation`")
        rates = (baseline, baseline * (1 + effect))
        if rates[1] >= 1:
            raise ValueError("conversion is a share: raised by `effect` it must stay below 1")
        return sum(rate * (1 - rate) for rate in rates)


class ExperimentDraft(BaseModel):
    """A new experiment. The first arm is the control."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "name": "blend",
                    "metric": "conversion",
                    "plan": {"baseline": 0.05, "effect": 0.1},
                    "arms": [{"name": "old", "policy": "popular"}, {"name": "new"}],
                }
            ]
        },
    )

    name: Name
    metric: Metric = Field(description="What decides; one value per user.")
    plan: Plan
    days: Annotated[int, Field(ge=1, le=30)] = Field(
        7, description="Days from a user's first list on in which their actions count."
    )
    arms: Annotated[list[Arm], Field(min_length=2, max_length=10)]
    traffic: Annotated[float, Field(ge=0.001, le=1, allow_inf_nan=False)] = Field(
        1.0, description="Share of the users in the experiment."
    )
    salt: Name | None = Field(None, description="Hashed with the user id; random by default.")
    note: Text = ""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if len({arm.name for arm in self.arms}) < len(self.arms):
            raise ValueError("two arms have the same name")
        self.plan.users_per_arm(self.metric, len(self.arms) - 1)
        return self


class Experiment(ExperimentDraft):
    """A stored experiment."""

    salt: Name
    created: AwareDatetime
    stopped: AwareDatetime | None = None

    @classmethod
    def of(cls, draft: ExperimentDraft) -> Experiment:
        """An experiment that starts now."""
        salt = draft.salt or secrets.token_hex(8)
        users = draft.plan.users_per_arm(draft.metric, len(draft.arms) - 1)
        plan = draft.plan.model_copy(update={"users": users})
        rest = draft.model_dump(exclude={"salt", "plan"})
        return cls(**rest, plan=plan, salt=salt, created=now())

    @property
    def test(self) -> SequentialTest:
        """The test of the primary metric."""
        comparisons = len(self.arms) - 1
        return SequentialTest(self.plan.users_per_arm(self.metric, comparisons), comparisons)

    def counts_at(self, moment: datetime) -> bool:
        """Whether a user's actions may still count."""
        return self.stopped is None or moment < self.stopped + timedelta(days=self.days)

    def arm_of(self, user_id: str) -> Arm | None:
        """The user's arm; None outside the traffic."""
        point = bucket(self.salt, user_id) / self.traffic
        if point >= 1.0:
            return None
        point *= sum(arm.share for arm in self.arms)
        for arm in self.arms:
            point -= arm.share
            if point < 0:
                return arm
        return self.arms[-1]  # rounding


def bucket(salt: str, user_id: str) -> float:
    """The user's point on [0, 1): uniform over users, independent between salts."""
    digest = hashlib.blake2b(f"{salt}\0{user_id}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53


@dataclass(frozen=True)
class Assigned:
    """A user's experiment and arm, and the options of their lists."""

    experiment: str
    arm: str
    options: Options


class Assignment:
    """Assigns users to the arms of the running experiments."""

    def __init__(self, experiments: Sequence[Experiment] = ()) -> None:
        self._running = [e for e in experiments if e.stopped is None]
        self._assigned = {
            (e.name, arm.name): Assigned(e.name, arm.name, arm.options)
            for e in self._running
            for arm in e.arms
        }

    @property
    def models(self) -> tuple[str, ...]:
        """Model versions of the running arms, the oldest experiment's first."""
        models = (arm.model for e in self._running for arm in e.arms if arm.model is not None)
        return tuple(dict.fromkeys(models))

    def of(self, user_id: str) -> Assigned | None:
        """The user's experiment and arm, or None."""
        if not user_id:
            return None
        for experiment in self._running:
            arm = experiment.arm_of(user_id)
            if arm is not None:
                return self._assigned[experiment.name, arm.name]
        return None


def read_experiments(connection: Connection) -> tuple[Experiment, ...]:
    """Every experiment, oldest first."""
    rows = connection.execute(select(table).order_by(table.c.created, table.c.name)).mappings()
    return tuple(readable(Experiment, rows))


def add_experiment(connection: Connection, experiment: Experiment) -> None:
    """Store an experiment. Raises IntegrityError if its name exists."""
    times = {"created": experiment.created, "stopped": experiment.stopped}
    connection.execute(insert(table), [experiment.model_dump(mode="json") | times])


def stop_experiment(connection: Connection, name: str) -> bool:
    """Stop an experiment; False if none of this name was running."""
    running = (table.c.name == name) & table.c.stopped.is_(None)
    return bool(connection.execute(update(table).where(running).values(stopped=now())).rowcount)


_COUNTS = ("users", "lists", "fallback_lists", "clicks", "buyers", "purchases")


@dataclass(frozen=True)
class ArmSums:
    """Sums over the users of one arm."""

    users: int = 0
    lists: int = 0
    fallback_lists: int = 0
    clicks: int = 0
    clicks_squared: int = 0
    buyers: int = 0
    purchases: int = 0

    def sample(self, metric: Metric) -> Sample:
        """The metric over these users."""
        if metric is Metric.CONVERSION:
            return Sample.of(self.users, self.buyers, self.buyers)  # 0² = 0, 1² = 1
        return Sample.of(self.users, self.clicks, self.clicks_squared)


def read_sums(connection: Connection, experiment: str) -> dict[str, ArmSums]:
    """Arm → sums over its users."""
    counts = experiment_users.c
    columns = {
        "users": func.count(),
        "lists": func.sum(counts.lists),
        "fallback_lists": func.sum(counts.fallback_lists),
        "clicks": func.sum(counts.clicks),
        "clicks_squared": func.sum(counts.clicks * counts.clicks),
        "buyers": func.sum(case((counts.purchases > 0, 1), else_=0)),
        "purchases": func.sum(counts.purchases),
    }
    labelled = [column.label(name) for name, column in columns.items()]
    of_experiment = counts.experiment == experiment
    query = select(counts.arm, *labelled).where(of_experiment).group_by(counts.arm)
    rows = connection.execute(query).mappings()
    return {row["arm"]: ArmSums(**{name: int(row[name]) for name in columns}) for row in rows}


def read_counted_until(connection: Connection) -> datetime | None:
    """Reactions are counted up to this time."""
    until: datetime | None = connection.scalar(select(experiment_progress.c.counted_until))
    return until


def results(
    experiment: Experiment,
    sums: Mapping[str, ArmSums],
    level: float,
    counted_until: datetime | None = None,
) -> Json:
    """Per arm the figures and, compared with the first arm, the decision at `level`."""
    arms = [sums.get(arm.name, ArmSums()) for arm in experiment.arms]
    shares = [arm.share for arm in experiment.arms]
    ratio_p_value = sample_ratio_p_value([arm.users for arm in arms], shares)
    broken = ratio_p_value < SRM_LIMIT
    comparisons = _comparisons(experiment, arms, level, broken)
    return {
        "name": experiment.name,
        "running": experiment.stopped is None,
        "metric": experiment.metric,
        "days": experiment.days,
        "planned_users": experiment.test.planned,
        "counted_until": counted_until,
        "level": level,
        "arms": [
            {
                "name": arm.name,
                "policy": arm.options.label,
                "share": arm.share / sum(shares),
                **_figures(arm_sums),
                **comparison,
            }
            for arm, arm_sums, comparison in zip(experiment.arms, arms, comparisons, strict=True)
        ],
        "sample_ratio": {"p_value": ratio_p_value, "broken": broken},
    }


def _figures(sums: ArmSums) -> Json:
    users, lists = max(sums.users, 1), max(sums.lists, 1)
    return {name: getattr(sums, name) for name in _COUNTS} | {
        "conversion": sums.buyers / users,
        "clicks_per_user": sums.clicks / users,
        "clicks_per_list": sums.clicks / lists,
    }


def _comparisons(
    experiment: Experiment, sums: Sequence[ArmSums], level: float, broken: bool
) -> list[Json]:
    """Per arm the difference to the first one, the adjusted p-value and the decision."""
    test = experiment.test
    control, *arms = (arm.sample(experiment.metric) for arm in sums)
    complete = min(arm.users for arm in sums) >= test.planned
    rows: list[Json] = [{"difference": None, "p_value": None, "decision": None}]
    p_values = holm([test.p_value(control, arm) for arm in arms])
    for arm, p_value in zip(arms, p_values, strict=True):
        difference = test.difference(control, arm, level)
        decision = Decision.UNDECIDED if complete else Decision.OPEN
        if p_value <= 1 - level:
            decision = Decision.BETTER if arm.mean > control.mean else Decision.WORSE
        rows.append(
            {
                "difference": asdict(difference) if difference else None,
                "p_value": p_value,
                "decision": None if broken else decision,
            }
        )
    return rows

"""Experiments: a hash assigns each user to an arm; each arm makes lists with its own options.

reads, writes  sql  experiments, experiment_users

The hash covers the experiment's salt and the user id: a user stays in an arm, in every process,
and experiments split users independently. A user is in at most one experiment: the oldest running
one whose traffic includes them. Visitors without an id are in none.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import Connection, case, func, insert, select, update

from afterclick.api import Policy, SamplingPolicy
from afterclick.events import now
from serving.control.rules import Name, Text
from serving.control.significance import (
    SRM_LIMIT,
    Sums,
    conversion,
    conversion_difference,
    ctr,
    ctr_difference,
    ctr_p_value,
    sample_ratio_p_value,
)
from serving.control.store import experiment_users, readable
from serving.control.store import experiments as table
from serving.request import Options

Part = Literal["model", "history", "trend", "content", "base", "popularity"]
Weight = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

_COUNTS = ("users", "lists", "clicked", "clicks", "buyers", "purchased")
_DIFFERENCES = ("ctr_difference", "ctr_p_value", "conversion_difference")


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


class ExperimentDraft(BaseModel):
    """A new experiment. The first arm is the control."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"name": "blend", "arms": [{"name": "old", "policy": "popular"}, {"name": "new"}]}
            ]
        },
    )

    name: Name
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
        return cls(**draft.model_dump(exclude={"salt"}), salt=salt, created=now())

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


def read_sums(connection: Connection, experiment: str) -> dict[str, Sums]:
    """Arm → sums over its users, of all processes."""
    counts = experiment_users.c
    lists, clicked = counts.lists, counts.clicked
    columns = {
        "users": func.count(),
        "buyers": func.sum(case((counts.purchased > 0, 1), else_=0)),
        "lists": func.sum(lists),
        "clicked": func.sum(clicked),
        "clicks": func.sum(counts.clicks),
        "purchased": func.sum(counts.purchased),
        "lists_squared": func.sum(lists * lists),
        "clicked_squared": func.sum(clicked * clicked),
        "lists_clicked": func.sum(lists * clicked),
    }
    labelled = [column.label(name) for name, column in columns.items()]
    of_experiment = counts.experiment == experiment
    query = select(counts.arm, *labelled).where(of_experiment).group_by(counts.arm)
    rows = connection.execute(query).mappings()
    return {row["arm"]: Sums(**{name: int(row[name]) for name in columns}) for row in rows}


def results(experiment: Experiment, sums: Mapping[str, Sums], level: float) -> dict[str, Any]:
    """Per arm the metrics with intervals of `level`; the first arm is the control."""
    by_arm = [sums.get(arm.name, Sums()) for arm in experiment.arms]
    shares = [arm.share for arm in experiment.arms]
    p_value = sample_ratio_p_value([arm.users for arm in by_arm], shares)
    controls = [None, *[by_arm[0]] * (len(by_arm) - 1)]
    return {
        "name": experiment.name,
        "running": experiment.stopped is None,
        "level": level,
        "arms": [
            {
                "name": arm.name,
                "policy": arm.options.label,
                "share": arm.share / sum(shares),
                **_arm_results(arm_sums, control, level),
            }
            for arm, arm_sums, control in zip(experiment.arms, by_arm, controls, strict=True)
        ],
        "sample_ratio": {"p_value": p_value, "broken": p_value < SRM_LIMIT},
    }


def _arm_results(sums: Sums, control: Sums | None, level: float) -> dict[str, Any]:
    counts = {name: getattr(sums, name) for name in _COUNTS}
    rates = {"ctr": asdict(ctr(sums, level)), "conversion": asdict(conversion(sums, level))}
    if control is None:
        return counts | rates | dict.fromkeys(_DIFFERENCES)
    return {
        **counts,
        **rates,
        "ctr_difference": asdict(ctr_difference(control, sums, level)),
        "ctr_p_value": ctr_p_value(control, sums),
        "conversion_difference": asdict(conversion_difference(control, sums, level)),
    }

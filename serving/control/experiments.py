"""Experiments: users are assigned to arms by a hash, each arm makes lists its own way.

The hash of the experiment's salt and the user's id decides, so that a user stays in an arm, in every process,
and experiments split users independently of one another. A user is in one experiment at most: the oldest
running one whose traffic takes them. Visitors without an id are in none.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import Connection, insert, select, update

from afterclick.events import now
from serving.control.reading import readable
from serving.control.rules import Name, Text
from serving.control.tables import experiments as table
from serving.ranking.options import Draw, Options, Policy

Part = Literal["model", "history", "trend", "content", "base", "popularity"]
Weight = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Arm(BaseModel):
    """One way to make lists. What is left out is as without the experiment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    share: Annotated[float, Field(ge=0.001, le=1000, allow_inf_nan=False)] = Field(
        1.0, description="Its part of the users, relative to the other arms'."
    )
    policy: Policy = Policy.BLEND
    explore: Share = 0.0
    draw: Draw = Draw.UNIFORM
    diversity: Share = 0.0
    weights: dict[Part, Weight] = Field(
        {}, description="What parts of the score are multiplied by."
    )
    model: Version | None = Field(
        None,
        description="A version of the model that makes its lists, loaded beside the one that serves. Where "
        "it is not there, the one that serves does, and the answer says so.",
    )

    @property
    def options(self) -> Options:
        weights = tuple(sorted(self.weights.items()))
        return Options(self.policy, self.explore, self.draw, self.diversity, weights, self.model)


class ExperimentDraft(BaseModel):
    """An experiment as it is asked for. The first arm is the control."""

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
        1.0, description="The share of users who take part."
    )
    salt: Name | None = Field(
        None, description="What is hashed with the user's id; random by default."
    )
    note: Text = ""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if len({arm.name for arm in self.arms}) < len(self.arms):
            raise ValueError("two arms have the same name")
        return self


class Experiment(ExperimentDraft):
    """An experiment as it is kept."""

    salt: Name
    created: AwareDatetime
    stopped: AwareDatetime | None = None

    @classmethod
    def of(cls, draft: ExperimentDraft) -> Experiment:
        """A new experiment, running from now on."""
        salt = draft.salt or secrets.token_hex(8)
        return cls(**draft.model_dump(exclude={"salt"}), salt=salt, created=now())

    def arm_of(self, user_id: str) -> Arm | None:
        """The arm that a user is in; None outside the traffic."""
        at = place(self.salt, user_id) / self.traffic
        if at >= 1.0:
            return None
        at *= sum(arm.share for arm in self.arms)
        for arm in self.arms:
            at -= arm.share
            if at < 0:
                return arm
        return self.arms[-1]  # rounding


def place(salt: str, user_id: str) -> float:
    """Where a user stands on [0, 1): uniform over users, independent between salts."""
    digest = hashlib.blake2b(f"{salt}\0{user_id}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53


@dataclass(frozen=True)
class Assigned:
    """Where a user is: what their lists are made by, and what impressions say of it."""

    experiment: str
    arm: str
    options: Options


class Assignment:
    """Who is in which arm of what runs."""

    def __init__(self, experiments: Sequence[Experiment] = ()) -> None:
        self._running = [e for e in experiments if e.stopped is None]
        self._assigned = {
            (e.name, arm.name): Assigned(e.name, arm.name, arm.options)
            for e in self._running
            for arm in e.arms
        }

    @property
    def models(self) -> tuple[str, ...]:
        """The versions that arms of what runs ask for, the oldest experiment's first."""
        asked = (arm.model for e in self._running for arm in e.arms if arm.model is not None)
        return tuple(dict.fromkeys(asked))

    def of(self, user_id: str) -> Assigned | None:
        """The user's experiment and arm; None where there is none."""
        if not self._running or not user_id:
            return None
        for experiment in self._running:
            arm = experiment.arm_of(user_id)
            if arm is not None:
                return self._assigned[experiment.name, arm.name]
        return None


def read_experiments(connection: Connection) -> tuple[Experiment, ...]:
    """Every experiment, the oldest first. One that this program cannot read is left out, and said to be."""
    rows = connection.execute(select(table).order_by(table.c.created, table.c.name)).mappings()
    return tuple(readable(Experiment, rows))


def add_experiment(connection: Connection, experiment: Experiment) -> None:
    """Keep an experiment. Raises IntegrityError where its name is taken."""
    connection.execute(insert(table), [experiment.model_dump(mode="json") | _moments(experiment)])


def stop_experiment(connection: Connection, name: str) -> bool:
    """End an experiment; whether one by that name was running."""
    running = (table.c.name == name) & table.c.stopped.is_(None)
    return bool(connection.execute(update(table).where(running).values(stopped=now())).rowcount)


def _moments(experiment: Experiment) -> dict[str, Any]:
    return {"created": experiment.created, "stopped": experiment.stopped}

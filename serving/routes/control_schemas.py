"""Requests and answers about rules, experiments, keys and tokens."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from afterclick.events import Id
from serving.control.api_keys import KeyDraft
from serving.control.auth import MAX_TOKEN_S
from serving.control.experiments import Experiment
from serving.control.rules import Rule


class KeptRule(Rule):
    """A rule as it is kept."""

    in_force: bool


class Rules(BaseModel):
    """Every rule, the oldest first."""

    rules: list[KeptRule]


class Removed(BaseModel):
    """What is no more."""

    removed: str


class Experiments(BaseModel):
    """Every experiment, the oldest first."""

    experiments: list[Experiment]


class ResultsQuery(BaseModel):
    """GET /experiments/{name}"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: Annotated[float, Field(ge=0.5, le=0.9999, allow_inf_nan=False)] = Field(
        0.95, description="Of the intervals."
    )


class Estimate(BaseModel):
    """A figure and its interval."""

    value: float
    low: float
    high: float


class ArmResults(BaseModel):
    """One arm; differences are to the first arm, the control, which has none."""

    name: str
    policy: str
    share: float = Field(description="Planned, of all users in the experiment.")
    users: int
    lists: int
    clicked: int = Field(description="Lists with a click, like, basket or purchase.")
    clicks: int
    buyers: int
    purchased: int = Field(description="Lists that something was bought from.")
    ctr: Estimate = Field(description="Clicked lists by lists.")
    conversion: Estimate = Field(description="Users who bought by users.")
    ctr_difference: Estimate | None
    ctr_p_value: float | None
    conversion_difference: Estimate | None


class SampleRatio(BaseModel):
    """Whether users came to the arms as planned."""

    p_value: float
    broken: bool = Field(description="So unlikely that the results must not be read.")


class Results(BaseModel):
    """What an experiment says so far."""

    name: str
    running: bool
    level: float
    arms: list[ArmResults]
    sample_ratio: SampleRatio


class KeyRow(KeyDraft):
    """A key in SQL, without the key."""

    created: AwareDatetime
    revoked: AwareDatetime | None


class Keys(BaseModel):
    """Every key in SQL, the oldest first."""

    keys: list[KeyRow]


class NewKey(KeyRow):
    """A key that was just made."""

    key: str = Field(description="RenderedList this once; only its hash is kept.")


class TokenRequest(BaseModel):
    """POST /tokens"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user_id: Id = Field(examples=["bob"])
    seconds: Annotated[int, Field(ge=1, le=MAX_TOKEN_S)] = Field(
        3600, description="How long it is good for."
    )


class Token(BaseModel):
    """A token for one user."""

    token: str
    expires: AwareDatetime

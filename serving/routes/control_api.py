"""Administration (scope `admin`): rules, experiments, API keys, user tokens, quarantine."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.responses import Response

from afterclick import api
from afterclick.arrays import Float64Array, Json
from afterclick.events import Id, now
from afterclick.trends import HALF_LIVES_MS
from serving.control.api_keys import KeyDraft
from serving.control.experiments import Experiment, ExperimentDraft
from serving.control.rules import Name, Rule, RuleDraft
from serving.control.significance import LEVEL
from serving.control.user_tokens import MAX_TOKEN_S, new_token
from serving.problems import ApiError
from serving.routes.fast_route import ServiceDep, json_response, own_path, responses

router = APIRouter()
ExperimentName = Annotated[Name, Path(examples=["blend"])]
KeyName = Annotated[Name, Path(examples=["shop"])]
UserId = Annotated[Id, Path(examples=["bob"])]
RuleId = Annotated[Name, Path(examples=["5f1c0a9be3b8"])]


class RuleRow(Rule):
    """A rule, and whether it is in force now."""

    in_force: bool


class RuleList(BaseModel):
    """Every rule, oldest first."""

    rules: list[RuleRow]


class Experiments(BaseModel):
    """Every experiment, oldest first."""

    experiments: list[Experiment]


class ResultsQuery(BaseModel):
    """GET /experiments/{name}"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: Annotated[float, Field(ge=0.5, le=0.9999, allow_inf_nan=False)] = Field(
        LEVEL, description="Confidence level of the intervals and decisions."
    )


class KeyRow(KeyDraft):
    """An API key in SQL, without the key."""

    created: AwareDatetime
    revoked: AwareDatetime | None


class KeyList(BaseModel):
    """Every API key in SQL, oldest first."""

    keys: list[KeyRow]


class NewKey(KeyRow):
    """A new API key."""

    key: str = Field(description="Returned this once; only its hash is stored.")


class RevokedTokens(BaseModel):
    """Which tokens are no longer valid."""

    user_id: str
    issued_before: AwareDatetime


class TokenRequest(BaseModel):
    """POST /tokens"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user_id: Id = Field(examples=["bob"])
    seconds: Annotated[int, Field(ge=1, le=MAX_TOKEN_S)] = Field(3600, description="Lifetime.")


@router.get("/rules", tags=["rules"], **responses(RuleList))
async def list_rules(service: ServiceDep) -> Response:
    """Every business rule, oldest first."""
    return json_response({"rules": [_rule_row(rule) for rule in service.control.rules]})


@router.post("/rules", tags=["rules"], **responses(RuleRow, 413, status=201))
async def add_rule(service: ServiceDep, body: Annotated[RuleDraft, Body()]) -> Response:
    """Boost, bury, pin or exclude the items of a query, from now on or for a period.

    In force within a second in this API, in others within a few.
    """
    rule = await service.in_force(service.control.add_rule, body)
    return json_response(_rule_row(rule), 201)


@router.delete("/rules/{rule_id:id}", tags=["rules"], **responses(api.Deleted, 404))
async def remove_rule(service: ServiceDep, rule_id: RuleId) -> Response:
    """Delete a rule."""
    await service.in_force(service.control.remove_rule, rule_id)
    return json_response({"removed": rule_id})


@router.get("/experiments", tags=["experiments"], **responses(Experiments))
async def list_experiments(service: ServiceDep) -> Response:
    """Every experiment, oldest first."""
    experiments = service.control.experiments
    return json_response({"experiments": [e.model_dump() for e in experiments]})


@router.post("/experiments", tags=["experiments"], **responses(Experiment, 409, 413, status=201))
async def create_experiment(
    service: ServiceDep, body: Annotated[ExperimentDraft, Body()]
) -> Response:
    """Start an experiment: its users get the lists of their arm.

    It names the metric that decides and how many users it needs.
    """
    experiment = await service.in_force(service.control.create_experiment, body)
    return json_response(experiment.model_dump(), 201)


@router.get("/experiments/{name:id}", tags=["experiments"], **responses(api.Results, 404))
async def experiment_results(
    service: ServiceDep, name: ExperimentName, query: Annotated[ResultsQuery, Query()]
) -> Response:
    """Results so far: the difference of each arm to the control, and what it shows.

    Intervals and decisions are valid whenever they are read.
    """
    return json_response(await asyncio.to_thread(service.control.results, name, query.level))


@router.post("/experiments/{name:id}/stop", tags=["experiments"], **responses(Experiment, 404))
async def stop_experiment(service: ServiceDep, name: ExperimentName) -> Response:
    """Stop an experiment. Its results stay; its users get default lists again."""
    experiment = await service.in_force(service.control.stop_experiment, name)
    return json_response(experiment.model_dump())


@router.get("/keys", tags=["keys"], **responses(KeyList))
async def list_keys(service: ServiceDep) -> Response:
    """Every API key in SQL, revoked ones included, oldest first; never the key itself."""
    stored = service.control.keys.stored
    return json_response({"keys": [key.model_dump(exclude={"sha256"}) for key in stored]})


@router.post("/keys", tags=["keys"], **responses(NewKey, 409, 413, status=201))
async def add_key(service: ServiceDep, body: Annotated[KeyDraft, Body()]) -> Response:
    """Create an API key. It is returned once, and valid within seconds.

    With the first key, the API requires a key for every request.
    """
    stored, key = await service.in_force(service.control.add_key, body)
    return json_response({"key": key, **stored.model_dump(exclude={"sha256"})}, 201)


@router.delete("/keys/{name:id}", tags=["keys"], **responses(api.Deleted, 404))
async def revoke_key(service: ServiceDep, name: KeyName) -> Response:
    """Revoke an API key: in this API on return, in others within seconds."""
    await service.in_force(service.control.revoke_key, name)
    return json_response({"removed": name})


@router.post("/tokens", tags=["tokens"], **responses(api.Token, 409, 413, status=201))
async def new_user_token(service: ServiceDep, body: Annotated[TokenRequest, Body()]) -> Response:
    """A token for one user's browser: it allows lists and feedback for this user only."""
    secret = service.settings.serving.token_secret
    if secret is None:
        raise ApiError(409, "tokens are disabled: set AFTERCLICK_SERVING__TOKEN_SECRET")
    token, expires = new_token(secret, body.user_id, body.seconds)
    return json_response({"token": token, "expires": datetime.fromtimestamp(expires, UTC)}, 201)


@router.delete(
    "/users/{user_id:path}/tokens",
    tags=["tokens"],
    dependencies=[Depends(own_path)],
    **responses(RevokedTokens),
)
async def revoke_user_tokens(service: ServiceDep, user_id: UserId) -> Response:
    """Revoke every token of a user: in this API on return, in others within seconds.

    A user's own token may do this too. Later tokens are valid.
    """
    at = await service.in_force(service.control.revoke_tokens, user_id)
    return json_response({"user_id": user_id, "issued_before": at})


@router.get("/admin/quarantine", tags=["admin"], **responses(api.Quarantine))
async def quarantine(service: ServiceDep) -> Response:
    """Items that new accounts push far beyond the support of established users.

    Items leave quarantine as their votes decay. Also the current weight of new accounts' votes.
    """
    snapshot = service.snapshots.current
    items = [
        {
            "item_id": snapshot.ids[index],
            "title": service.catalogue.title(snapshot.ids[index]),
            "trends": _by_half_life(snapshot.decayed_counts[index].round(6)),
        }
        for index in snapshot.quarantined.tolist()
    ]
    return json_response(
        {
            "established_share": snapshot.established_share,
            "new_account_weight": _by_half_life(snapshot.new_account_weight),
            "quarantined": items,
            "approved": sorted(service.feed.approved),
        }
    )


@router.post("/admin/quarantine", tags=["admin"], **responses(api.Ack, 413))
async def approve(service: ServiceDep, body: Annotated[api.QuarantineApproval, Body()]) -> Response:
    """Count every vote on an item, or apply the limits to it again.

    In force here on return, in other processes within seconds.
    """
    await asyncio.to_thread(service.feed.approve, body.item_id, body.approved)
    service.snapshots.wake()
    done = "approved" if body.approved else "limited again"
    return json_response({"done": f"{body.item_id} {done}"})


def _rule_row(rule: Rule) -> Json:
    return {**rule.model_dump(), "in_force": rule.applies(now())}


def _by_half_life(values: Float64Array) -> dict[str, float]:
    return dict(zip(HALF_LIVES_MS, values.tolist(), strict=True))

"""The routes of what people decide: business rules, experiments, and who gets a key or a token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, TypeVar

from fastapi import APIRouter, Body, Path, Query
from starlette.responses import Response

from afterclick import api
from afterclick.arrays import Json
from afterclick.errors import AlreadyThere, NotFound, Unavailable
from afterclick.events import now
from serving.control.api_keys import KeyDraft
from serving.control.auth import new_token
from serving.control.experiments import Experiment, ExperimentDraft
from serving.control.rules import Name, Rule, RuleDraft
from serving.problems import ApiError, unavailable
from serving.routes import control_schemas as schemas
from serving.routes.replies import Parts, answers, reply
from serving.routes.routing import DirectRoute

router = APIRouter(route_class=DirectRoute)
T = TypeVar("T")
ExperimentName = Annotated[Name, Path(examples=["blend"])]
KeyName = Annotated[Name, Path(examples=["shop"])]
RuleId = Annotated[Name, Path(examples=["5f1c0a9be3b8"])]


@router.get("/rules", tags=["rules"], **answers(schemas.Rules))
async def rules(service: Parts) -> Response:
    """Every business rule, the oldest first, and whether it is in force."""
    return reply({"rules": [rule_row(rule) for rule in service.control.rules]})


@router.post("/rules", tags=["rules"], **answers(schemas.KeptRule, 413, status=201))
async def add_rule(service: Parts, body: Annotated[RuleDraft, Body()]) -> Response:
    """Boost, bury, pin or exclude the items of a query, from now on or for a time.

    It is in force here within a second, in other processes within a few.
    """
    rule = await _known(service.control.add_rule, body)
    return reply(rule_row(rule), 201)


@router.delete("/rules/{rule_id}", tags=["rules"], **answers(schemas.Removed, 404))
async def remove_rule(service: Parts, rule_id: RuleId) -> Response:
    """Forget a rule."""
    await _known(service.control.remove_rule, rule_id)
    return reply({"removed": rule_id})


@router.get("/experiments", tags=["experiments"], **answers(schemas.Experiments))
async def experiments(service: Parts) -> Response:
    """Every experiment, the oldest first."""
    return reply(
        {"experiments": [experiment.model_dump() for experiment in service.control.experiments]}
    )


@router.post("/experiments", tags=["experiments"], **answers(Experiment, 409, 413, status=201))
async def create_experiment(service: Parts, body: Annotated[ExperimentDraft, Body()]) -> Response:
    """Begin an experiment: from now on its users get the lists of their arm."""
    experiment = await _known(service.control.create_experiment, body)
    return reply(experiment.model_dump(), 201)


@router.get("/experiments/{name}", tags=["experiments"], **answers(api.Results, 404))
async def experiment_results(
    service: Parts, name: ExperimentName, query: Annotated[schemas.ResultsQuery, Query()]
) -> Response:
    """What an experiment says so far: CTR and conversion with intervals, and the sample ratio check."""
    return reply(await _known(service.control.results, name, query.level))


@router.post("/experiments/{name}/stop", tags=["experiments"], **answers(Experiment, 404))
async def stop_experiment(service: Parts, name: ExperimentName) -> Response:
    """End an experiment. Its results stay; its users get what they got before."""
    return reply((await _known(service.control.stop_experiment, name)).model_dump())


async def _known(call: Callable[..., T], *arguments: object) -> T:
    """What a call of the control plane gives, made in a thread."""
    try:
        return await asyncio.to_thread(call, *arguments)
    except NotFound as error:
        raise ApiError(404, str(error)) from error
    except AlreadyThere as error:
        raise ApiError(409, str(error)) from error
    except Unavailable as error:
        raise unavailable(str(error)) from error


@router.get("/keys", tags=["keys"], **answers(schemas.Keys))
async def keys(service: Parts) -> Response:
    """Every key in SQL, the oldest first, revoked ones among them; never the key itself."""
    kept = service.control.keys.stored
    return reply({"keys": [key.model_dump(exclude={"sha256"}) for key in kept]})


@router.post("/keys", tags=["keys"], **answers(schemas.NewKey, 409, 413, status=201))
async def add_key(service: Parts, body: Annotated[KeyDraft, Body()]) -> Response:
    """Make a key. It is shown this once, and in force within seconds.

    The first one makes the service ask everybody for a key.
    """
    kept, key = await _known(service.control.add_key, body)
    return reply({"key": key, **kept.model_dump(exclude={"sha256"})}, 201)


@router.delete("/keys/{name}", tags=["keys"], **answers(schemas.Removed, 404))
async def revoke_key(service: Parts, name: KeyName) -> Response:
    """End a key: here at once, in other processes within seconds."""
    await _known(service.control.revoke_key, name)
    return reply({"removed": name})


@router.post("/tokens", tags=["tokens"], **answers(api.Token, 409, 413, status=201))
async def new_user_token(service: Parts, body: Annotated[schemas.TokenRequest, Body()]) -> Response:
    """A token for one user's browser: it may ask for lists and give feedback, for this user alone."""
    secret = service.settings.serving.token_secret
    if secret is None:
        raise ApiError(409, "there are no tokens: set AFTERCLICK_SERVING__TOKEN_SECRET")
    token, expires = new_token(secret, body.user_id, body.seconds)
    return reply({"token": token, "expires": datetime.fromtimestamp(expires, UTC)}, 201)


def rule_row(rule: Rule) -> Json:
    """A rule as it is answered."""
    return {**rule.model_dump(), "in_force": rule.holds(now())}

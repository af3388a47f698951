"""The routes of an administrator (scope admin): steer the replay and the simulator, train, promote, break.

All of them answer at once; what takes longer is a job, whose state is in GET /admin/console.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Body, Path
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from afterclick.errors import AfterclickError, AlreadyRunning, BadInput, NotRunning, Unavailable
from afterclick.events import Id
from afterclick.trends import HALF_LIVES_MS
from serving.routes.problems import ApiError
from serving.routes.queries import ItemIds, Request
from serving.routes.replies import Parts, answers, reply
from serving.routes.routing import DirectRoute
from serving.service import Service

router = APIRouter(prefix="/admin", route_class=DirectRoute, tags=["admin"])
T = TypeVar("T")
Fault = Annotated[Literal["stream", "redis", "duplicates"], Path()]


class ReplaySteering(Request):
    """POST /admin/replay"""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"not": {"required": ["speed", "rate"]}}
    )

    state: Literal["running", "paused"] | None = None
    speed: (
        Annotated[str, Field(max_length=20, pattern=r"^(max|\d+(\.\d+)?([smhdwSMHDW]/s|x))$")]
        | None
    ) = Field(None, description="Event time per second.", examples=["1h/s", "60x", "max"])
    rate: float | None = Field(
        None, gt=0, le=1e6, description="Events per second, in place of a speed."
    )

    @model_validator(mode="after")
    def _one_pace(self) -> ReplaySteering:
        if {"speed", "rate"} <= self.model_fields_set:
            raise ValueError("give speed or rate, not both")
        return self


class SimulatorPlan(Request):
    """POST /admin/simulator"""

    shoppers: int = Field(
        20, ge=2, le=2000, description="Every second one is shown what is popular."
    )
    pause_s: float = Field(
        1.0, ge=0, le=60, description="Least seconds between two rounds of visits."
    )
    drift: float = Field(
        0.0, ge=0, le=1, description="Probability that a taste changes between two visits."
    )
    hot: ItemIds = Field([], description="Items that everybody likes now.")


class SimulatorSteering(Request):
    """POST /admin/simulator/steer"""

    drift: float | None = Field(None, ge=0, le=1)
    hot: ItemIds | None = None


class Promotion(Request):
    """POST /admin/models/promote"""

    version: Id = Field(description="A version, or one of champion, previous, challenger.")


class JobState(BaseModel):
    """A command that runs beside the API, or has run."""

    name: str
    state: Literal["running", "done", "failed"]
    progress: str
    answer: dict[str, Any] | None
    error: str | None
    ended: float | None = Field(description="Seconds since the epoch.")
    seconds: float


class ConsoleState(BaseModel):
    """What there is to steer, and how it goes."""

    replay: dict[str, Any] | None = Field(description="Null where none ever ran from this home.")
    simulator: dict[str, Any]
    training: dict[str, Any] | None
    stack: list[dict[str, Any]] | None = Field(
        description="The parts that a supervisor keeps running."
    )
    jobs: dict[str, JobState]
    break_it: bool
    faults: list[dict[str, Any]]


class HeldItem(BaseModel):
    """An item in quarantine."""

    item_id: str
    title: str | None
    trends: dict[str, float] = Field(description="What is left of them, by half-life.")


class QuarantineState(BaseModel):
    """Items whose votes by new accounts do not count."""

    established_share: float = Field(
        description="Of an item's votes, what established users usually cast; 0 while it is not known."
    )
    trust: dict[str, float] = Field(
        description="What a new account's vote counts, by half-life: the lower, the more they exceed "
        "their usual share; 1 while that is not known."
    )
    held: list[HeldItem]
    lifted: list[str] = Field(description="Items an administrator vouches for.")


class Lift(Request):
    """POST /admin/quarantine"""

    item_id: Id
    lifted: bool = Field(True, description="false: judge the item like any other again.")


class Done(BaseModel):
    """What was done."""

    done: str


@router.get("/console", **answers(ConsoleState))
async def console(service: Parts) -> Response:
    """Everything an administrator steers, as it is now."""
    return reply(await asyncio.to_thread(service.console.as_json))


@router.post("/replay", **answers(Done, 409, 413))
async def steer_replay(service: Parts, body: Annotated[ReplaySteering, Body()]) -> Response:
    """Pause the replay of this home, let it go on, or change its pace."""
    change = body.model_dump(exclude_none=True)
    await _done(lambda: service.console.steer_replay(change))
    return reply(
        {"done": ", ".join(f"{name} {value}" for name, value in change.items()) or "nothing"}
    )


@router.post("/simulator", **answers(Done, 409, 413))
async def start_simulator(service: Parts, body: Annotated[SimulatorPlan, Body()]) -> Response:
    """Let shoppers with hidden tastes shop until they are stopped."""
    start = service.console.simulator.start
    await _done(lambda: start(body.shoppers, body.pause_s, body.drift, tuple(body.hot)))
    return reply({"done": f"{body.shoppers} shoppers shop"})


@router.post("/simulator/steer", **answers(Done, 409, 413))
async def steer_simulator(service: Parts, body: Annotated[SimulatorSteering, Body()]) -> Response:
    """Let tastes drift, make items hot: from the next visit on."""
    hot = None if body.hot is None else tuple(body.hot)
    await _done(lambda: service.console.simulator.steer(body.drift, hot))
    return reply({"done": "steered"})


@router.post("/simulator/stop", **answers(Done))
async def stop_simulator(service: Parts) -> Response:
    """Send the shoppers home."""
    await _done(service.console.simulator.stop)
    return reply({"done": "stopped"})


@router.post("/models/list", **answers(JobState, 409, status=202))
async def list_models(service: Parts) -> Response:
    """RecommendationRequest the registry for its models, their figures and the gate's decisions: the job `models`."""
    return await _job(service, service.console.list_models)


@router.post("/models/train", **answers(JobState, 409, status=202))
async def train(service: Parts) -> Response:
    """Train on the log now; the gate decides whether the model is served: the job `train`."""
    return await _job(service, service.console.train)


@router.post("/models/promote", **answers(JobState, 409, 413, status=202))
async def promote(service: Parts, body: Annotated[Promotion, Body()]) -> Response:
    """Serve this model from now on, whatever its figures are: the job `promote`."""
    if body.version.startswith("-"):
        raise ApiError(422, "a version does not begin with a dash")
    return await _job(service, lambda: service.console.promote(body.version))


@router.post("/models/rollback", **answers(JobState, 409, status=202))
async def roll_back(service: Parts) -> Response:
    """Serve the model that was served before: the job `promote`."""
    return await _job(service, service.console.roll_back)


@router.post("/reconcile", **answers(JobState, 409, status=202))
async def reconcile(service: Parts) -> Response:
    """Recount the log and compare the state with it: the job `reconcile`.

    The replay and the simulator stand still meanwhile, so that the state does.
    """
    return await _job(service, service.console.reconcile)


@router.get("/quarantine", **answers(QuarantineState))
async def quarantine(service: Parts) -> Response:
    """Items that new accounts push far beyond what established users support. They leave by themselves.

    And how far the votes of new accounts are trusted, all together.
    """
    snapshot = service.snapshots.current
    items = [
        {
            "item_id": snapshot.ids[at],
            "title": service.catalogue.title(snapshot.ids[at]),
            "trends": dict(zip(HALF_LIVES_MS, snapshot.values[at].round(6).tolist(), strict=True)),
        }
        for at in snapshot.held.tolist()
    ]
    lifted = sorted(service.feed.lifted)
    trust = dict(zip(HALF_LIVES_MS, snapshot.trust.tolist(), strict=True))
    shop = {"established_share": snapshot.established_share, "trust": trust}
    return reply({**shop, "held": items, "lifted": lifted})


@router.post("/quarantine", **answers(Done, 413))
async def lift(service: Parts, body: Annotated[Lift, Body()]) -> Response:
    """Let every vote on an item count, whoever casts it; or no more.

    At once in this process, in others within ten minutes.
    """
    await _done(lambda: service.feed.lift(body.item_id, body.lifted))
    service.snapshots.wake()
    return reply({"done": f"{body.item_id} {'lifted' if body.lifted else 'judged again'}"})


@router.post("/break/{fault}", **answers(Done, 403, 409))
async def break_it(service: Parts, fault: Fault) -> Response:
    """Kill the stream job, hold up Redis, or send events twice; only where the settings allow it."""
    if not service.settings.serving.break_it:
        raise ApiError(403, "this installation is not for breaking (AFTERCLICK_SERVING__BREAK_IT)")
    return reply({"done": await _done(lambda: service.console.break_it(fault))})


async def _job(service: Service, start: Callable[[], Any]) -> Response:
    job = await _done(start)
    return reply(job.as_json(), 202)


async def _done(work: Callable[[], T]) -> T:
    """The work in a thread; its errors as problems."""
    try:
        return await asyncio.to_thread(work)
    except (AlreadyRunning, NotRunning) as error:
        raise ApiError(409, str(error)) from None
    except Unavailable as error:
        raise ApiError(503, str(error)) from None
    except BadInput as error:
        raise ApiError(422, str(error)) from None
    except AfterclickError as error:
        raise ApiError(500, str(error)) from None

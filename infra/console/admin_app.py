"""The admin console's HTTP API (scope `admin`).

Every route returns immediately; longer commands are jobs, with their state in GET /admin/console.

reads  sql  api_keys
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.types import ASGIApp, Receive, Scope, Send

from afterclick.errors import Unavailable
from afterclick.events import Id
from afterclick.io.connections import ConnectionLimits
from afterclick.settings import ServingSettings, Settings
from infra.console.admin_console import AdminConsole
from infra.console.jobs import Job
from serving import problems
from serving.app import HEADERS, bind
from serving.control.api_keys import ApiKeyStore, KeyTable, read_keys
from serving.control.auth import AuthMiddleware, check_address
from serving.control.store import Database
from serving.control.user_tokens import UserTokens
from serving.routes.api_docs import install_docs

Json = dict[str, Any]
ItemIds = Annotated[list[Id], Field(max_length=500)]
STOP_S = 2
KEYS_S = 2.0
"""How often the API keys are read from SQL."""

router = APIRouter(prefix="/admin", tags=["admin"])


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReplayChange(_Body):
    """POST /admin/replay"""

    state: Literal["running", "paused"] | None = None
    speed: str | None = Field(
        None,
        max_length=20,
        pattern=r"^(max|\d+(\.\d+)?([smhdwSMHDW]/s|x))$",
        description="Event time per second.",
        examples=["1h/s", "60x", "max"],
    )
    rate: float | None = Field(
        None, gt=0, le=1e6, description="Events per second, instead of a speed."
    )

    @model_validator(mode="after")
    def _one_pace(self) -> ReplayChange:
        if {"speed", "rate"} <= self.model_fields_set:
            raise ValueError("give speed or rate, not both")
        return self


class SimulationStart(_Body):
    """POST /admin/simulator"""

    shoppers: int = Field(20, ge=2, le=2000, description="Every second one sees popular items.")
    pause_s: float = Field(1.0, ge=0, le=60, description="Minimum seconds between two rounds.")
    drift: float = Field(0.0, ge=0, le=1, description="Probability of a taste change per visit.")
    hot: ItemIds = Field([], description="Items that every simulated user likes.")


class SimulationChange(_Body):
    """POST /admin/simulator/steer"""

    drift: float | None = Field(None, ge=0, le=1)
    hot: ItemIds | None = None


class Promotion(_Body):
    """POST /admin/models/promote"""

    version: Id = Field(
        description="A version, or champion, previous or challenger.", pattern=r"^[^-]"
    )


class JobState(BaseModel):
    """A command that the console runs or has run."""

    name: str
    state: Literal["running", "done", "failed"]
    progress: str
    answer: Json | None
    error: str | None
    ended: float | None = Field(description="Seconds since the epoch.")
    seconds: float


class ConsoleState(BaseModel):
    """The state of everything that can be controlled."""

    replay: Json | None = Field(description="Null if none has run from this home.")
    simulator: Json
    training: Json | None
    stack: list[Json] | None = Field(description="The processes of the supervisor.")
    jobs: dict[str, JobState]
    fault_injection: bool
    faults: list[Json]


class ActionResult(BaseModel):
    """What was done."""

    done: str


def console_of(request: Request) -> AdminConsole:
    console: AdminConsole = request.app.state.console
    return console


ConsoleDep = Annotated[AdminConsole, Depends(console_of)]


@router.get("/console")
async def console_state(console: ConsoleDep) -> ConsoleState:
    """The state of replay, simulation, training, jobs and faults."""
    return ConsoleState.model_validate(await asyncio.to_thread(console.as_json))


@router.post("/replay")
async def control_replay(console: ConsoleDep, body: ReplayChange) -> ActionResult:
    """Pause or resume the replay of this home, or change its pace."""
    change = body.model_dump(exclude_none=True)
    console.control_replay(change)
    changes = ", ".join(f"{name} {value}" for name, value in change.items())
    return ActionResult(done=changes or "nothing")


@router.post("/simulator")
async def start_simulation(console: ConsoleDep, body: SimulationStart) -> ActionResult:
    """Start simulated users with hidden tastes; they run until they are stopped."""
    console.simulation.start(body.shoppers, body.pause_s, body.drift, body.hot)
    return ActionResult(done=f"started {body.shoppers} simulated users")


@router.post("/simulator/steer")
async def change_simulation(console: ConsoleDep, body: SimulationChange) -> ActionResult:
    """Change taste drift and hot items, from the next visit on."""
    console.simulation.steer(body.drift, body.hot)
    return ActionResult(done="changed")


@router.post("/simulator/stop")
async def stop_simulation(console: ConsoleDep) -> ActionResult:
    """Stop the simulated users."""
    await asyncio.to_thread(console.simulation.stop)
    return ActionResult(done="stopped")


@router.post("/models/list", status_code=202)
async def list_models(console: ConsoleDep) -> JobState:
    """Read models, metrics and gate decisions from the registry: the job `models`."""
    return _state(console.jobs.start("models", "models", "ls", "--json"))


@router.post("/models/train", status_code=202)
async def train(console: ConsoleDep) -> JobState:
    """Train on the log; the gate decides whether the model is served: the job `train`."""
    return _state(console.jobs.start("train", "train", "--json"))


@router.post("/models/promote", status_code=202)
async def promote(console: ConsoleDep, body: Promotion) -> JobState:
    """Serve this model, regardless of its metrics: the job `promote`."""
    return _state(console.jobs.start("promote", "models", "promote", body.version, "--json"))


@router.post("/models/rollback", status_code=202)
async def roll_back(console: ConsoleDep) -> JobState:
    """Serve the previous model: the job `promote`."""
    return _state(console.jobs.start("promote", "models", "rollback", "--json"))


@router.post("/reconcile", status_code=202)
async def reconcile(console: ConsoleDep) -> JobState:
    """Recount the log and compare the state with it: the job `reconcile`.

    Pauses replay and simulation until the recount ends.
    """
    return _state(console.reconcile())


@router.post("/faults/{fault}")
async def inject_fault(
    console: ConsoleDep, fault: Literal["stream", "redis", "duplicates"]
) -> ActionResult:
    """Kill the stream job, pause Redis, or resend events; only if the settings allow it."""
    if not console.faults.allowed:
        raise problems.ApiError(
            403, "fault injection is disabled: set AFTERCLICK_CONSOLE__FAULT_INJECTION=true"
        )
    return ActionResult(done=await asyncio.to_thread(console.faults.inject, fault))


def create_app(settings: Settings) -> FastAPI:
    """The console's application. Its child processes end with the ASGI lifespan."""
    console = AdminConsole(settings)
    keys = ApiKeyStore(_exposed(settings), settings.home)
    database = Database(settings.database)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await console.stop()
        database.close()

    app = FastAPI(
        title="Afterclick admin console",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.console = console
    app.include_router(router)

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    install_docs(app)
    problems.install(app)
    serving = settings.serving
    app.add_middleware(
        problems.BodyLimit, limit=serving.max_body_bytes, timeout_s=settings.console.body_s
    )
    app.add_middleware(AuthMiddleware, settings=serving, keys=keys, tokens=UserTokens(serving))
    app.add_middleware(_KeyReader, database=database, keys=keys)
    return app


class _KeyReader:
    """ASGI middleware: refresh the API keys. The last ones remain valid without the database."""

    def __init__(self, app: ASGIApp, database: Database, keys: ApiKeyStore) -> None:
        self.app, self._database, self._keys = app, database, keys
        self._due = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and time.monotonic() >= self._due:
            self._due = time.monotonic() + KEYS_S
            with suppress(Unavailable):
                self._keys.replace(await asyncio.to_thread(_keys_of, self._database))
        await self.app(scope, receive, send)


def serve(settings: Settings) -> None:
    """Serve the console until SIGINT or SIGTERM.

    Raises BadInput for an address beyond loopback without API keys, Unavailable if it is taken.
    """
    console = settings.console
    check_address(_exposed(settings), lambda: _has_keys(settings))
    listener = bind(console.host, console.port)
    uvicorn.Server(config_of(settings)).run(sockets=[listener])


def config_of(settings: Settings) -> uvicorn.Config:
    """The configuration of uvicorn."""
    return uvicorn.Config(
        create_app(settings),
        access_log=False,
        log_level="warning",
        server_header=False,
        headers=HEADERS,
        timeout_graceful_shutdown=STOP_S,
        **ConnectionLimits.of(settings.console).protocols(),
    )


def _has_keys(settings: Settings) -> bool:
    database = Database(settings.database)
    try:
        return bool(_keys_of(database).rows)
    finally:
        database.close()


def _exposed(settings: Settings) -> ServingSettings:
    """The API's settings of authentication, at the console's address; never open."""
    update = {"host": settings.console.host, "open": False}
    return settings.serving.model_copy(update=update)


def _keys_of(database: Database) -> KeyTable:
    """The keys in SQL. Raises Unavailable."""
    database.upgrade()
    with database.begin() as connection:
        return read_keys(connection)


def _state(job: Job) -> JobState:
    return JobState.model_validate(job.as_json())

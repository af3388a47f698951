"""The admin panels of the dashboard: replay, simulation, models, fault injection.

reads   http  GET /admin/console (admin console), GET /popular
writes  http  POST /admin/… (admin console)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime

import structlog
from nicegui import ui

from afterclick.arrays import Json
from afterclick.errors import AfterclickError, BadInput
from afterclick.io.client import AsyncClient
from ui.gateway import ShopClient
from ui.widgets import Age, FaultPanel, ModelsPanel, ReplayPanel, SimulatorPanel, panel

log = structlog.get_logger()

ROLES = ("champion", "previous", "challenger")
MAX_METRICS = 8
MAX_DECISIONS = 5
MAX_FAULTS = 5
OFFERED_ITEMS = 20
REFUSED = "The admin console refused the request"
SKIPPED_POLLS = 30
"""Polls skipped after a refusal: the key lacks the scope, or the rate limit was reached."""
SIMULATOR_PATHS = {
    "start": "/admin/simulator",
    "change": "/admin/simulator/steer",
    "stop": "/admin/simulator/stop",
}
MODEL_PATHS = {name: f"/admin/models/{name}" for name in ("list", "train", "promote", "rollback")}
FAULT_PATHS = {
    "reconcile": "/admin/reconcile",
    **{name: f"/admin/faults/{name}" for name in ("stream", "redis", "duplicates")},
}
"""What the browser may name, and the route of the console for it."""
REGISTRY_JOBS = {"models": "reading the registry", "promote": "changing the served model"}
NO_TRAINING: Json = {"running": False, "words": "", "progress": ""}
NO_RECONCILE: Json = {"state": "", "words": "", "more": ""}


class AdminPanels:
    """The panels; they show the reason if the key lacks the scope `admin`."""

    def __init__(self, client: ShopClient, console: AsyncClient) -> None:
        self._client, self._console = client, console
        self._skip = 0
        self._items_offered = False
        self._ages: list[Age] = []

    def build(self, build_models: Callable[[], None]) -> None:
        """Add the panels; `build_models` adds the published models to the models panel."""
        self._notice = ui.label().classes("ac-notice").props("role=status data-testid=admin-notice")
        with ui.element("div").classes("ac-charts ac-pairs"):
            with self._panel("Replay"):
                self._replay = ReplayPanel(self._control_replay, replay=None)
            with self._panel("Simulation"):
                self._simulator = SimulatorPanel(
                    self._control_simulator, running=False, plan={}, figures={}, said="", items=[]
                )
            with self._panel("Models").props("data-panel=models"):
                self._models = ModelsPanel(
                    self._act_on_models,
                    training=NO_TRAINING,
                    columns=[],
                    metrics=[],
                    decisions=[],
                    busy="",
                    error="",
                    listed=False,
                    canRollBack=False,
                )
                build_models()
            with self._panel("Fault injection"):
                self._faults = FaultPanel(
                    self._inject, allowed=False, parts=[], done=[], proof=NO_RECONCILE
                )

    def _panel(self, title: str) -> ui.element:
        section = panel(title)
        with section:
            self._ages.append(Age())
        return section

    async def refresh(self) -> None:
        """Fetch and show; if the console does not answer, the panels keep their content."""
        if self._skip:
            self._skip -= 1
            return
        try:
            console = await self._console.get("/admin/console")
            await self._offer_items()
        except BadInput as error:
            self._skip = SKIPPED_POLLS
            self._notice.set_text(f"{REFUSED}: {error}")
            return
        except AfterclickError as error:
            log.info("admin console unavailable", error=str(error))
            return
        if self._notice.text.startswith(REFUSED):
            self._notice.set_text("")
        await self._show(console)

    async def _show(self, console: Json) -> None:
        simulator = console["simulator"]
        self._replay.set_props(replay=console["replay"])
        self._simulator.set_props(
            **{name: simulator[name] for name in ("running", "plan", "figures", "said")}
        )
        self._models.set_props(**models_view(console))
        self._faults.set_props(**faults_view(console))
        for age in self._ages:
            age.refresh()
        if registry_changed(console):
            with suppress(AfterclickError):  # another page has just started the same job
                await self._console.post("/admin/models/list", {})

    async def _control_replay(self, _: str, change: Json) -> None:
        await self._post("/admin/replay", change)

    async def _control_simulator(self, name: str, change: Json) -> None:
        await self._post(SIMULATOR_PATHS[name], change)

    async def _act_on_models(self, _: str, act: Json) -> None:
        name = str(act.get("what"))
        body = {"version": act.get("version")} if name == "promote" else {}
        await self._post(MODEL_PATHS.get(name), body)

    async def _inject(self, name: str, args: Json) -> None:
        fault = name if name == "reconcile" else str(args.get("fault"))
        await self._post(FAULT_PATHS.get(fault), {})

    async def _post(self, path: str | None, body: Json) -> None:
        """Send a request, show the reason if it fails, and refresh. None for an unknown action."""
        if path is None:
            self._notice.set_text("This action is unknown: reload the page")
            return
        try:
            await self._console.post(path, body)
            self._notice.set_text("")
        except AfterclickError as error:
            self._notice.set_text(str(error))
        await self.refresh()

    async def _offer_items(self) -> None:
        """Offer popular items for the simulation, once there are some."""
        if self._items_offered:
            return
        items = (await self._client.popular(OFFERED_ITEMS)).items
        if items:
            self._items_offered = True
            rows = [{"item_id": item.item_id, "title": item.title or ""} for item in items]
            self._simulator.set_props(items=rows)


def models_view(console: Json) -> Json:
    """Models by role with their metrics, the gate's decisions, and the running training."""
    jobs: Json = console["jobs"]
    registry: Json = (jobs.get("models") or {}).get("answer") or {}
    decisions = registry.get("decisions") or []
    models = _by_role(registry.get("models") or [], decisions)
    metrics = _shown_metrics(models)
    return {
        "training": training_view(console),
        "metrics": metrics,
        "columns": [_model_column(model, metrics, models) for model in models],
        "decisions": [
            {name: decision[name] for name in ("version", "passed", "verdict", "reason")}
            for decision in decisions[:MAX_DECISIONS]
        ],
        "busy": next((text for name, text in REGISTRY_JOBS.items() if _runs(jobs, name)), ""),
        "error": next(
            (jobs[n]["error"] for n in ("promote", "train", "models") if _failed(jobs, n)), ""
        ),
        "listed": bool(registry),
        "canRollBack": any("previous" in model["roles"] for model in models),
    }


def registry_changed(console: Json) -> bool:
    """True if a training or a promotion has ended since the registry was last read."""
    jobs: Json = console["jobs"]
    if _runs(jobs, "models"):
        return False
    read = (jobs.get("models") or {}).get("ended")
    ended = [
        jobs[name]["ended"] for name in ("promote", "train") if (jobs.get(name) or {}).get("ended")
    ]
    status: Json = console.get("training") or {}
    if read is not None and status.get("last") and status["state"] != "training":
        ended.append(datetime.fromisoformat(status["since"]).timestamp())
    return any(read is None or time > read for time in ended)


def training_view(console: Json) -> Json:
    """The state of training, also of one that another process has started."""
    status, job = console.get("training") or {}, console["jobs"].get("train") or {}
    if status.get("state") == "training" or job.get("state") == "running":
        progress = status.get("progress") or job["progress"]
        return {"running": True, "words": "Training", "progress": progress}
    scheduled = status.get("state") == "waiting"
    last = status.get("last") or ""
    return {
        "running": False,
        "words": "Waiting for the next training" if scheduled else "No training is running",
        "progress": f"last: {last}" if last else "",
    }


def faults_view(console: Json) -> Json:
    """The injected faults, the services of the stack, and the result of the recount."""
    parts = console.get("stack") or []
    return {
        "allowed": console["fault_injection"],
        "parts": [{name: part[name] for name in ("name", "state", "restarts")} for part in parts],
        "done": console["faults"][:MAX_FAULTS],
        "proof": reconcile_view(console["jobs"].get("reconcile")),
    }


def reconcile_view(job: Json | None) -> Json:
    """The state of the recount: the number of differences, and how much was compared."""
    if job is None:
        return NO_RECONCILE
    if job["state"] == "running":
        more = f"{job['seconds']:.0f} s; replay and simulation are paused"
        return {"state": "running", "words": "Recounting the log", "more": more}
    report = job["answer"]
    if not report:
        return {"state": "failed", "words": "Recount failed", "more": job["error"] or ""}
    differences = report["differences"]
    return {
        "state": "failed" if differences else "done",
        "words": f"{differences:,} differences",
        "more": f"in {report['events']:,} events of {report['users']:,} users and "
        f"{report['items']:,} items: {report['duplicates']:,} duplicate events refused, "
        f"{report['lost']:,} lost, {report['double']:,} counted twice; {report['seconds']:.1f} s",
    }


def _by_role(models: Iterable[Json], decisions: Iterable[Json]) -> list[Json]:
    """One model per role, in the order of ROLES.

    The champion is the model that serves, whatever its alias. Without a registered challenger,
    the newest refused one is shown.
    """
    rows = []
    for model in models:
        roles = [alias for alias in model["aliases"] if alias != "champion"]
        roles = ["champion"] if model["served"] else roles
        rows.append({**model, "roles": roles, "registered": True})
    if not any("challenger" in row["roles"] for row in rows):
        versions = {row["version"] for row in rows}
        refused = [d for d in decisions if d["version"] not in versions][:1]
        rows += [{**d, "roles": ["challenger"], "registered": False} for d in refused]
    by_role = {role: next((r for r in rows if role in r["roles"]), None) for role in ROLES}
    return [{**row, "role": role} for role, row in by_role.items() if row is not None]


def _shown_metrics(models: Iterable[Json]) -> list[str]:
    names = dict.fromkeys(name for model in models for name in model["metrics"])
    return sorted(names, key=lambda name: ("@10" not in name, name))[:MAX_METRICS]


def _model_column(model: Json, metrics: list[str], models: list[Json]) -> Json:
    values = model["metrics"]
    best = [
        name
        for name in metrics
        if name in values
        and len(models) > 1
        and values[name] >= max(other["metrics"].get(name, 0.0) for other in models)
    ]
    serving = model["role"] == "champion"
    return {
        "version": model["version"],
        "role": model["role"],
        "metrics": [f"{values[name]:.4f}" if name in values else "-" for name in metrics],
        "best": best,
        "promotable": model["registered"] and not serving,
        "status": "serving" if serving else model.get("verdict", "refused"),
    }


def _runs(jobs: Json, name: str) -> bool:
    return (jobs.get(name) or {}).get("state") == "running"


def _failed(jobs: Json, name: str) -> bool:
    return (jobs.get(name) or {}).get("state") == "failed"

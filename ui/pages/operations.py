"""The part of the dashboard that steers: it asks once a second, and posts what is pressed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
from nicegui import ui

from afterclick.arrays import Json
from afterclick.errors import AfterclickError, BadInput
from afterclick.io.client import AsyncClient
from ui.api import Api
from ui.components.controls import Age, panel
from ui.components.operations import BreakIt, ModelsControl, ReplayControl, SimulatorControl
from ui.operations import break_panel, models_panel, registry_changed

log = structlog.get_logger()

OFFERED_ITEMS = 20
REFUSED = "Nothing can be steered from here"
REFUSED_FOR = 30
"""Turns left out after the API has refused: the key has not the scope, or there were too many requests."""
PATHS = {
    "start": "/admin/simulator",
    "steer": "/admin/simulator/steer",
    "stop": "/admin/simulator/stop",
}
EMPTY: Json = {"state": "", "words": "", "more": ""}


class OperationsPanels:
    """Replay, simulator, models and faults. Without the scope for it they say so."""

    def __init__(self, api: Api, console: AsyncClient) -> None:
        self._api, self._console = api, console
        self._waits = 0
        self._offered = False
        self._ages: list[Age] = []

    def build(self, build_models: Callable[[], None]) -> None:
        """Lay out the panels; `build_models` adds the published models to the panel about models."""
        self._notice = (
            ui.label().classes("ac-notice").props("role=status data-testid=operations-notice")
        )
        with ui.element("div").classes("ac-charts ac-pairs"):
            with panel("Replay"):
                self._ages.append(Age())
                self._replay = ReplayControl(self._steer_replay, replay=None)
            with panel("Shoppers"):
                self._ages.append(Age())
                self._simulator = SimulatorControl(
                    self._steer_simulator, running=False, plan={}, figures={}, said="", items=[]
                )
            with panel("Models").props("data-panel=models"):
                self._ages.append(Age())
                self._models = ModelsControl(
                    self._act_on_models,
                    training={"running": False, "words": "", "progress": ""},
                    columns=[],
                    metrics=[],
                    decisions=[],
                    busy="",
                    error="",
                    listed=False,
                    canRollBack=False,
                )
                build_models()
            with panel("Break it"):
                self._ages.append(Age())
                self._break = BreakIt(self._break_it, allowed=False, parts=[], done=[], proof=EMPTY)

    async def refresh(self) -> None:
        """Ask and show; a silent API leaves the panels as they are."""
        if self._waits:
            self._waits -= 1
            return
        try:
            console = await self._console.get("/admin/console")
            await self._offer_items()
        except BadInput as error:
            self._waits = REFUSED_FOR
            self._notice.set_text(f"{REFUSED}: {error}")
            return
        except AfterclickError as error:
            log.info("no console", error=str(error))
            return
        if self._notice.text.startswith(REFUSED):
            self._notice.set_text("")
        await self._show(console)

    async def _show(self, console: Json) -> None:
        simulator = console["simulator"]
        self._replay.show(replay=console["replay"])
        self._simulator.show(
            **{name: simulator[name] for name in ("running", "plan", "figures", "said")}
        )
        self._models.show(**models_panel(console))
        self._break.show(**break_panel(console))
        for age in self._ages:
            age.heard()
        if registry_changed(console):
            with suppress(AfterclickError):  # somebody else asks at this moment
                await self._console.post("/admin/models/list", {})

    async def _steer_replay(self, _: str, change: Json) -> None:
        await self._ask(lambda: self._console.post("/admin/replay", change))

    async def _steer_simulator(self, name: str, change: Json) -> None:
        await self._ask(lambda: self._console.post(PATHS[name], change))

    async def _act_on_models(self, _: str, act: Json) -> None:
        body = {"version": act["version"]} if act["what"] == "promote" else {}
        await self._ask(lambda: self._console.post(f"/admin/models/{act['what']}", body))

    async def _break_it(self, name: str, fault: Json) -> None:
        path = "/admin/reconcile" if name == "reconcile" else f"/admin/faults/{fault['fault']}"
        await self._ask(lambda: self._console.post(path, {}))

    async def _ask(self, call: Callable[[], Awaitable[Json]]) -> None:
        """Do it, say why where it could not be done, and show what it has changed."""
        try:
            await call()
            self._notice.set_text("")
        except AfterclickError as error:
            self._notice.set_text(str(error))
        await self.refresh()

    async def _offer_items(self) -> None:
        """Popular items to make hot, once there are some."""
        if self._offered:
            return
        items = (await self._api.popular(OFFERED_ITEMS)).items
        if items:
            self._offered = True
            self._simulator.show(
                items=[{"item_id": i.item_id, "title": i.title or ""} for i in items]
            )

"""The panels by which an administrator steers: replay, simulator, models, faults on purpose."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from nicegui.element import Element
from nicegui.events import GenericEventArguments

from afterclick.arrays import Json

Steer = Callable[[str, Json], Awaitable[None]]
"""(event, what it says)"""


class _Panel(Element):
    """Shows props, and hands every event of its component to `on_event(name, arguments)`."""

    events: tuple[str, ...] = ()

    def __init__(self, on_event: Steer, **props: Any) -> None:
        super().__init__()
        self._props.update(props)
        for name in self.events:
            self._listen(name, on_event)

    def show(self, **props: Any) -> None:
        """Send what has changed."""
        if any(self._props.get(name) != value for name, value in props.items()):
            self._props.update(props)
            self.update()

    def _listen(self, name: str, on_event: Steer) -> None:
        async def hear(event: GenericEventArguments) -> None:
            await on_event(name, event.args)

        self.on(name, hear)


class ReplayControl(_Panel, component="replay_control.js"):
    """`replay`: as in GET /admin/console."""

    events = ("steer",)


class SimulatorControl(_Panel, component="simulator_control.js"):
    """`running`, `plan`, `figures`, `said` as in GET /admin/console; `items` to offer as hot."""

    events = ("start", "steer", "stop")


class ModelsControl(_Panel, component="models_control.js"):
    """What ui.models.models_panel says."""

    events = ("act",)


class BreakIt(_Panel, component="break_it.js"):
    """What ui.operations.break_panel says."""

    events = ("fault", "reconcile")

"""Compose the stack and run it: the one place where its pieces meet."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

import structlog
from rich.console import Console

from afterclick.settings import Settings
from infra.stack import parts, record
from infra.stack.demo import Demo, DemoOptions
from infra.stack.gauge import Gauge
from infra.stack.layout import Layout, addresses, lay_out, require_free_ports
from infra.stack.lock import only_stack
from infra.stack.supervisor import Stack
from infra.stack.view import View
from infra.topics_admin import ensure_topics

log = structlog.get_logger()

_GAUGE_S = 2.0


@dataclass(frozen=True)
class UpOptions:
    """How `afterclick up` was asked to run."""

    port_offset: int = 0
    demo: DemoOptions | None = None
    retrain: bool = False
    """Train by the clock and after new events, as `afterclick retrain` does."""


def up(settings: Settings, options: UpOptions) -> None:
    """Run the whole stack until it is told to stop. Raises AlreadyRunning, Unavailable."""
    layout = lay_out(for_show(settings) if options.demo else settings, options.port_offset)
    with only_stack(layout.home):
        require_free_ports(layout)
        asyncio.run(_run(layout, options))


def for_show(settings: Settings) -> Settings:
    """The settings of a demo: its dashboard may break things, its shoppers, all new accounts, make trends."""
    serving = settings.serving.model_copy(update={"quarantine_slack": 0.0})
    console = settings.console.model_copy(update={"fault_injection": True})
    return settings.model_copy(update={"serving": serving, "console": console})


async def _run(layout: Layout, options: UpOptions) -> None:
    view = View(Console())
    stack = Stack(
        layout, parts.servers(layout), parts.applications(layout, options.retrain), view.note
    )
    ending = threading.Event()
    measuring = threading.Thread(target=_measure, args=(layout, view, ending), daemon=True)
    beside = [lambda stack: record.keep(stack, lambda: view.figures)]
    if options.demo:
        demo = Demo(stack, options.demo, view)
        stack.stages = demo.stages
        beside.append(lambda _: demo.run())
    view.note(f"starting; data and logs in {layout.home}")
    if options.port_offset:
        told = " ".join(f"{name}={value}" for name, value in addresses(layout.settings).items())
        view.note(f"for commands in other shells: export {told}")
    measuring.start()
    with view.shown() as live:
        following = asyncio.create_task(view.follow(stack, live))
        try:
            await stack.run(lambda: _topics(layout, view), *beside)
        finally:
            ending.set()
            following.cancel()
            if live:
                live.update(view.draw(stack), refresh=True)


def _topics(layout: Layout, view: View) -> None:
    created = ensure_topics(layout.settings)
    if created:
        view.note(f"created {len(created)} topics")


def _measure(layout: Layout, view: View, ending: threading.Event) -> None:
    """Read the figures every two seconds into the view's.

    In a daemon thread, so that a question to a server that is gone never holds up the end.
    """
    gauge = Gauge(layout)
    while not ending.wait(_GAUGE_S):
        try:
            view.show(gauge.read())
        except Exception:  # the edge of a thread: the next reading may do better
            log.exception("no figures")

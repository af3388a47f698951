"""What `make demo` shows: the catalogue, the history at full speed, training, then a live stream.

Every stage is an `afterclick` command that could be run by hand; a second demo goes on where the first was.

reads   file  <home>/replay/status.json  how the replay goes
        topic models  whether there is a champion
        http  GET /recommendations
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from afterclick.errors import AfterclickError, Unavailable
from afterclick.io.home import TrainingStatus
from infra.embedded.process import Process
from infra.stack.cut import Cut
from infra.stack.part import State
from infra.stack.parts import command
from infra.stack.stages import Stage
from infra.stack.supervisor import Stack
from infra.stack.view import View
from training.publish import champion

_IN_TURN = (("catalogue",), ("history",), ("people", "log"), ("training",), ("live", "retraining"))
"""Stages, those of one bracket beside one another."""
_OPTIONAL = ("catalogue", "people", "retraining")
"""Without them a demo is still one: there are datasets without titles."""
_PATIENCE_S = 30.0
_ENOUGH = 100_000


@dataclass(frozen=True)
class DemoOptions:
    """What is replayed and how fast the live part goes."""

    cut: Cut
    rate: float = 20.0
    """Events a second of the live part."""


class Demo:
    """Runs the stages, one after the other, and keeps what they show."""

    def __init__(self, stack: Stack, options: DemoOptions, view: View) -> None:
        self.stack, self.options, self.cut, self.view = stack, options, options.cut, view
        self.stages = [Stage(name) for names in _IN_TURN for name in names]
        self._champion: str | None = None
        self._partial = False
        self._begun = False

    async def run(self) -> None:
        """Every stage in turn; a failure is shown and ends the demo, never the stack."""
        announcing = asyncio.create_task(self._announce())
        try:
            for names in _IN_TURN:
                await asyncio.gather(*(self._stage(name) for name in names))
        except AfterclickError as error:
            self.view.note(f"[red]the replay stops here, the stack goes on[/red]: {error}")
        await announcing

    async def _stage(self, name: str) -> None:
        stage = next(stage for stage in self.stages if stage.name == name)
        work: Callable[[Stage], Any] = getattr(self, f"_{name}")
        stage.begin()
        try:
            await work(stage)
        except AfterclickError as error:
            if name not in _OPTIONAL:
                stage.end(state="failed")
                raise
            stage.note, stage.state = str(error), "failed"
        stage.end(state="done" if stage.state == "running" else stage.state)
        self.view.note(f"{stage.name}: {stage.note or stage.state} ({stage.seconds:.1f} s)")

    async def _catalogue(self, stage: Stage) -> None:
        answer = await self._answer("items", "ingest", "items", self.cut.path, "--json")
        stage.note = f"{answer['items']:,} items published"

    async def _history(self, stage: Stage) -> None:
        stage.total = self.cut.history
        until = self._until_text()
        answer = await self._replay(stage, "replay-history", "--until", until)
        stage.done, self._begun = stage.total, answer["started_at_row"] > 0
        stage.note = (
            f"{answer['sent']:,} reviews before {until[:10]} at {answer['events_per_s']:,.0f}/s"
        )

    async def _people(self, stage: Stage) -> None:
        """The toy users' histories, once."""
        if self._begun:
            stage.note, stage.state = "they have them", "left out"
            return
        arguments = (
            "ingest",
            "people",
            self.cut.path,
            "--clock",
            "rebased",
            "--until",
            self._until_text(),
        )
        answer = await self._answer("people", *arguments, "--json")
        stage.note = f"{len(answer['people'])} toy users with {answer['sent']} reviews"

    def _until_text(self) -> str:
        return f"{datetime.fromtimestamp(self.cut.until_ms / 1000, UTC):%Y-%m-%dT%H:%M:%S}"

    async def _log(self, stage: Stage) -> None:
        """Wait until the Parquet log, which training reads, has every event; the state may still lag.

        Not for ever: on a small machine the first model comes from what is there after half a minute.
        """
        published = await asyncio.to_thread(champion, self.stack.layout.settings.kafka)
        if published:
            self._champion = published.version
            stage.note, stage.state = "not waited for: there is a model", "left out"
            return
        while not self._log_complete(stage):
            if stage.elapsed > _PATIENCE_S and stage.done >= _ENOUGH:
                self._partial = True
                break
            await asyncio.sleep(0.5)
        stage.note = f"{stage.done:,} of {stage.total:,} events in the Parquet log"

    def _log_complete(self, stage: Stage) -> bool:
        figures = self.view.figures
        stage.total = max(stage.total, figures.log_events)
        stage.done = figures.archived_events
        return stage.done >= stage.total > 0

    async def _training(self, stage: Stage) -> None:
        if self._champion:
            stage.note, stage.state = f"goes on with model {self._champion}", "left out"
            return
        await self._train(stage)

    async def _retraining(self, stage: Stage) -> None:
        """Train again on the whole history, where the first model had only a part; the gate may refuse it."""
        if not self._partial:
            stage.note, stage.state = "not needed", "left out"
            return
        stage.total = self.cut.history
        while stage.done < stage.total:
            await asyncio.sleep(0.5)
            stage.done = self.view.figures.archived_events
        await self._train(stage)

    async def _train(self, stage: Stage) -> None:
        process = command(self.stack.layout, "train", "train", "--json")
        following = asyncio.create_task(self._follow_training(stage))
        try:
            answer = await self._last_line("train", process)
        finally:
            following.cancel()
        stage.note = f"model {answer['version']}"

    async def _follow_training(self, stage: Stage) -> None:
        """Show what training says that it does."""
        while True:
            await asyncio.sleep(1.0)
            status = TrainingStatus.read(self.stack.layout.home)
            if status is not None and status.state == "training":
                stage.note = status.progress[:70]

    async def _live(self, stage: Stage) -> None:
        stage.total = self.cut.rows - self.cut.history
        stage.note = f"{self.options.rate:g} reviews a second"
        await self._replay(stage, "replay-live", "--rate", f"{self.options.rate:g}")

    async def _replay(self, stage: Stage, name: str, *options: str) -> dict[str, Any]:
        following = asyncio.create_task(self._follow_replay(stage))
        try:
            arguments = (self.cut.path, "--clock", "rebased", *options, "--json")
            return await self._answer(name, "ingest", "replay", *arguments)
        finally:
            following.cancel()

    async def _follow_replay(self, stage: Stage) -> None:
        """Keep the stage's bar where the replay is."""
        file = self.stack.layout.home / "replay" / "status.json"
        while True:
            with contextlib.suppress(OSError, ValueError, KeyError):
                status = json.loads(file.read_text())
                if status["state"] == "running":
                    left = status["total"] - status["delivered"]
                    stage.done = max(0, stage.total - left)
            await asyncio.sleep(0.5)

    async def _announce(self) -> None:
        """Say when the API gives its first list, and when the first one comes from a model."""
        serve = next(part for part in self.stack.applications if part.name == "serve")
        while serve.state is not State.READY:
            await asyncio.sleep(0.1)
        await self._until("first list", lambda answer: bool(answer["items"]))
        await self._until(
            "first personalised list from a model",
            lambda answer: bool(answer["model_version"]) and answer["source"] == "personalised",
        )

    async def _until(self, what: str, good: Callable[[dict[str, Any]], bool]) -> None:
        while True:
            answer = await asyncio.to_thread(self._list)
            if answer and good(answer):
                source = f"source {answer['source']}, model {answer['model_version'] or 'none yet'}"
                self.view.note(
                    f"[bold green]{what} after {self.stack.age:.1f} s[/bold green] ({source})"
                )
                return
            await asyncio.sleep(0.5)

    def _list(self) -> dict[str, Any]:
        query = urlencode({"user_id": self.cut.user, "n": 10, "preview": "true"})
        url = f"{self.stack.layout.api_url}/recommendations?{query}"
        with (
            contextlib.suppress(OSError, ValueError),
            urllib.request.urlopen(url, timeout=2) as response,
        ):
            answer: dict[str, Any] = json.load(response)
            return answer
        return {}

    async def _answer(self, name: str, *arguments: str) -> dict[str, Any]:
        return await self._last_line(name, command(self.stack.layout, name, *arguments))

    async def _last_line(self, name: str, process: Process) -> dict[str, Any]:
        """Run a command to its end and read the JSON on the last line of its output."""
        await self.stack.task(name, process)
        for line in reversed(process.tail(20).splitlines()):
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
                if isinstance(answer, dict):
                    return answer
        raise Unavailable(f"{name} gave no figures; see {process.log}")

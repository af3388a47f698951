"""The steps of `make demo`: catalogue, history at full speed, training, then a live stream.

Each step runs an `afterclick` command; a second demo continues where the first one stopped.

reads   file   <home>/replay/status.json, retrain.json
        topic  models (whether there is a champion), reviews, feedback (offsets)
        delta  <archive>: which offsets are archived
        http   GET /recommendations
        file   the dataset (`afterclick split-dataset`)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict

from afterclick.errors import AfterclickError, BadDataset, Unavailable
from afterclick.io.event_archive import EventArchive, MissingArchive
from afterclick.io.home import RUNNING, ReplayStatus, StackProgress, TrainingStatus
from afterclick.io.kafka_log import KafkaLog
from infra.stack.services import State, Topology
from infra.stack.status import DemoStep, Display
from infra.stack.supervisor import Supervisor
from training.publish import champion

if TYPE_CHECKING:
    from ingest.datasets import ResolvedDataset

_GROUPS = (("catalogue",), ("history",), ("people", "log"), ("training",), ("live", "retraining"))
_OPTIONAL = ("catalogue", "people", "retraining")
"""The demo continues without them: some datasets have no titles."""
_POLL_S = 0.25
_MAX_WAIT_S = 10.0
_ENOUGH_EVENTS = 90_000
"""Less than one batch of the archive: 100,000 events, less what its partitions round down."""
_NOTE_LENGTH = 70


class TimeSplit(BaseModel):
    """A dataset in two parts: the history before `until_ms`, and the live part from then on."""

    model_config = ConfigDict(frozen=True)

    path: str
    name: str
    why: str
    rows: int
    bad: int
    history: int
    """Rows of the history."""
    until_ms: int
    user: str
    """The most active user in the newest tenth of the history."""


@dataclass(frozen=True)
class DemoOptions:
    """The dataset and the speed of its live part."""

    split: TimeSplit
    rate: float = 20.0
    """Events per second of the live part."""


class Demo:
    """Runs the steps; those of one group run concurrently, the groups one after the other."""

    def __init__(
        self,
        options: DemoOptions,
        topology: Topology,
        supervisor: Supervisor,
        display: Display,
        progress: Callable[[], StackProgress],
    ) -> None:
        self._topology, self._supervisor, self._display = topology, supervisor, display
        self._rate, self._split = options.rate, options.split
        self._progress = progress
        self._work: dict[str, Callable[[DemoStep], Awaitable[None]]] = {
            "catalogue": self._publish_catalogue,
            "history": self._replay_history,
            "people": self._seed_demo_users,
            "log": self._wait_for_log,
            "training": self._train_first,
            "live": self._replay_live,
            "retraining": self._train_again,
        }
        self._steps = {name: DemoStep(name) for name in self._work}
        self._champion: str | None = None
        self._partial = self._continued = False

    @property
    def steps(self) -> list[DemoStep]:
        return list(self._steps.values())

    async def run(self) -> None:
        """Run every step; a failure ends the demo, never the stack."""
        announcing = asyncio.create_task(self._announce())
        try:
            for names in _GROUPS:
                await asyncio.gather(*(self.step(name) for name in names))
        except AfterclickError as error:
            self._display.note(f"[red]the demo ends here, the stack keeps running[/red]: {error}")
        await announcing

    async def step(self, name: str) -> None:
        """Run one step. Raises AfterclickError if a required step fails."""
        step = self._steps[name]
        step.begin()
        try:
            await self._work[name](step)
        except AfterclickError as error:
            step.end("failed")
            if name not in _OPTIONAL:
                raise
            step.note = str(error)
        if step.state == "running":
            step.end()
        self._supervisor.reached(name)
        self._display.note(f"{name}: {step.note or step.state} ({step.seconds:.1f} s)")

    async def _publish_catalogue(self, step: DemoStep) -> None:
        summary = await self._run("items", "ingest", "items", self._split.path, "--json")
        step.note = f"{summary['items']:,} items published"

    async def _replay_history(self, step: DemoStep) -> None:
        step.total = self._split.history
        summary = await self._replay(step, "replay-history", "--until", self._until)
        step.done, self._continued = step.total, summary["started_at_row"] > 0
        rate = f"{summary['events_per_s']:,.0f}/s"
        step.note = f"{summary['sent']:,} reviews before {self._until[:10]} at {rate}"

    async def _seed_demo_users(self, step: DemoStep) -> None:
        if self._continued:
            step.skip("the demo users have their histories")
            return
        options = ("--clock", "rebased", "--until", self._until, "--json")
        summary = await self._run("people", "ingest", "people", self._split.path, *options)
        step.note = f"{len(summary['people'])} demo users with {summary['sent']} reviews"

    async def _wait_for_log(self, step: DemoStep) -> None:
        """Wait until the event archive, which training reads, is complete; the state may still lag.

        After `_MAX_WAIT_S` a part is enough: of a large dataset the first model is trained on it.
        """
        published = await asyncio.to_thread(champion, self._topology.settings.kafka)
        if published:
            self._champion = published.version
            step.skip("not needed: there is a model")
            return
        with KafkaLog(self._topology.settings.kafka) as kafka:
            while not await asyncio.to_thread(self._log_complete, step, kafka):
                if step.elapsed > _MAX_WAIT_S and step.done >= _ENOUGH_EVENTS:
                    self._partial = True
                    break
                await asyncio.sleep(_POLL_S)
        step.note = f"{step.done:,} of {step.total:,} events in the event archive"

    def _log_complete(self, step: DemoStep, kafka: KafkaLog) -> bool:
        """Asks Kafka and the archive: the stack's own figures may be ten seconds old."""
        settings = self._topology.settings
        with contextlib.suppress(MissingArchive, Unavailable):  # not created yet, or restarted
            ranges = kafka.ranges(*settings.kafka.topics.interactions)
            step.total = sum(offsets.end for offsets in ranges.values())
            archived = EventArchive.open(settings.archive).offsets(ranges)
            step.done = sum(offset + 1 for offset in archived.values())
        return step.done >= step.total > 0

    async def _train_first(self, step: DemoStep) -> None:
        if self._champion:
            step.skip(f"continues with model {self._champion}")
            return
        await self._train(step)

    async def _train_again(self, step: DemoStep) -> None:
        """Train on the whole history if the first model had a part of it."""
        if not self._partial:
            step.skip("not needed")
            return
        step.total = self._split.history
        while step.done < step.total:
            await asyncio.sleep(0.5)
            step.done = self._progress().archived_events
        await self._train(step)

    async def _replay_live(self, step: DemoStep) -> None:
        step.total = self._split.rows - self._split.history
        step.note = f"{self._rate:g} reviews per second"
        await self._replay(step, "replay-live", "--rate", f"{self._rate:g}")

    async def _train(self, step: DemoStep) -> None:
        async with _meanwhile(lambda: self.show_training(step)):
            published = await self._run("train", "train", "--json")
        step.note = f"model {published['version']}"

    def show_training(self, step: DemoStep) -> None:
        """Show the progress of a running training."""
        status = TrainingStatus.read(self._topology.home)
        if status is not None and status.state == "training":
            step.note = status.progress[:_NOTE_LENGTH]

    async def _replay(self, step: DemoStep, name: str, *options: str) -> dict[str, Any]:
        arguments = ("ingest", "replay", self._split.path, "--clock", "rebased", *options, "--json")
        async with _meanwhile(lambda: self._show_replay(step)):
            return await self._run(name, *arguments)

    def _show_replay(self, step: DemoStep) -> None:
        status = ReplayStatus.read(self._topology.home)
        if status is not None and status.state == RUNNING:
            step.done = max(0, step.total - (status.total - status.delivered))

    @property
    def _until(self) -> str:
        return f"{datetime.fromtimestamp(self._split.until_ms / 1000, UTC):%Y-%m-%dT%H:%M:%S}"

    async def _run(self, name: str, *arguments: str) -> dict[str, Any]:
        """Run an `afterclick` command; the JSON object on the last line of its output."""
        output: list[str] = []
        process = self._topology.command(name, *arguments, on_output=output.append)
        await self._supervisor.command(process)
        with contextlib.suppress(ValueError, IndexError):
            summary = json.loads(output[-1])
            if isinstance(summary, dict):
                return summary
        raise Unavailable(f"{name} printed no JSON object; see {process.log}")

    async def _announce(self) -> None:
        """Note the first list of the API, and the first one from a model."""
        serve = next(s for s in self._supervisor.applications if s.name == "serve")
        while serve.state is not State.READY:
            await asyncio.sleep(0.1)
        await self._note_first("first list", lambda page: bool(page["items"]))
        await self._note_first(
            "first personalised list from a model",
            lambda page: bool(page["model_version"]) and page["source"] == "personalised",
        )
        self._display.note(f"seconds since the start: {json.dumps(self._supervisor.milestones)}")

    async def _note_first(self, what: str, matches: Callable[[dict[str, Any]], bool]) -> None:
        while not ((page := await asyncio.to_thread(self._recommendations)) and matches(page)):
            await asyncio.sleep(_POLL_S)
        self._supervisor.reached(what)
        seconds = f"{self._supervisor.milestones[what]:.1f} s"
        source = f"source {page['source']}, model {page['model_version'] or 'none yet'}"
        self._display.note(f"[bold green]{what} after {seconds}[/bold green] ({source})")

    def _recommendations(self) -> dict[str, Any]:
        query = urlencode({"user_id": self._split.user, "n": 10, "preview": "true"})
        url = f"{self._topology.settings.serving.url}/recommendations?{query}"
        with (
            contextlib.suppress(OSError, ValueError),
            urllib.request.urlopen(url, timeout=2) as response,
        ):
            page: dict[str, Any] = json.load(response)
            return page
        return {}


@asynccontextmanager
async def _meanwhile(show: Callable[[], None]) -> AsyncIterator[None]:
    """Call `show` twice a second during a `with`."""

    async def repeat() -> None:
        while True:
            show()
            await asyncio.sleep(0.5)

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()


def find_split(home: Path, live_share: float, dataset: str | None) -> TimeSplit:
    """Run the command in a process, with progress on standard error. Raises BadDataset."""
    command = [sys.executable, "-m", "infra", "split-dataset", str(home), str(live_share)]
    command += [dataset] if dataset else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BadDataset("the demo needs a dataset: see the error above")
    return TimeSplit.model_validate_json(done.stdout.splitlines()[-1])


def split(choice: ResolvedDataset, home: Path, live_share: float) -> TimeSplit:
    """Split between two timestamps, so that equal times are on one side."""
    import numpy as np
    import pyarrow as pa

    from ingest.sorting import sort_by_time

    data = sort_by_time(choice.dataset, home)
    batches = list(data.batches())
    times = np.concatenate([batch["time_ms"].to_numpy() for batch in batches])
    until = int(times[int(len(times) * (1 - live_share))])
    history = int(np.searchsorted(times, until, side="left"))
    newest = max(1, history // 10)
    users = pa.Table.from_batches(batches)["user_id"].slice(history * 9 // 10, newest)
    return TimeSplit(
        path=str(choice.dataset.path.absolute()),
        name=data.manifest.name,
        why=choice.why,
        rows=len(times),
        bad=data.manifest.bad,
        history=history,
        until_ms=until,
        user=Counter(users.to_pylist()).most_common(1)[0][0],
    )

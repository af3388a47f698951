"""The demo's steps against a real Kafka: which of them are optional, and which end the demo."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from afterclick import artifact
from afterclick.errors import Unavailable
from afterclick.io.event_archive import EventArchive
from afterclick.io.home import StackProgress
from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import Settings
from infra.demo.demo import Demo, DemoOptions, TimeSplit
from infra.stack.services import Topology
from infra.stack.status import DemoStep, Display
from infra.stack.supervisor import Supervisor
from streaming.archive_table import append, create_archive
from training.publish import announce
from training.workspace import report_progress

DAY_S = 86_400
REVIEWS = 12


class SmallDemo:
    """A demo of `REVIEWS` ratings on a stack whose servers run already, and its printed notes."""

    def __init__(self, settings: Settings, ratings: Path) -> None:
        self.printed = StringIO()
        display = Display(Console(file=self.printed, width=200))
        split = TimeSplit(
            path=str(ratings),
            name="ratings",
            why="named",
            rows=REVIEWS,
            bad=0,
            history=REVIEWS - 2,
            until_ms=(REVIEWS - 2) * DAY_S * 1000,
            user="u1",
        )
        self.supervisor = Supervisor([], [], display.note)
        topology = Topology.of(settings)
        self.demo = Demo(DemoOptions(split), topology, self.supervisor, display, StackProgress)

    def run(self, *names: str) -> None:
        async def steps(names: Sequence[str]) -> None:
            for name in names:
                await self.demo.step(name)

        asyncio.run(steps(names))

    def step(self, name: str) -> DemoStep:
        return next(step for step in self.demo.steps if step.name == name)


def test_ratings_without_a_catalogue_are_replayed(settings: Settings, tmp_path: Path) -> None:
    ratings = tmp_path / "ratings_Electronics.csv"
    ratings.write_text(
        "".join(f"u{day % 3},i{day % 4},5.0,{day * DAY_S}\n" for day in range(REVIEWS))
    )
    small = SmallDemo(settings, ratings)
    small.run("catalogue", "people", "history")
    states = {step.name: step.state for step in small.demo.steps if step.state != "waiting"}
    assert states == {"catalogue": "failed", "people": "failed", "history": "done"}
    assert f"history: {REVIEWS - 2} reviews before" in small.printed.getvalue()
    assert "items file" in small.step("catalogue").note
    assert "items file" in small.step("people").note


def test_the_first_training_waits_until_the_archive_holds_the_whole_history(
    settings: Settings, tmp_path: Path
) -> None:
    ratings = tmp_path / "ratings_Electronics.csv"
    ratings.write_text(
        "".join(f"u{day % 3},i{day % 4},5.0,{day * DAY_S}\n" for day in range(REVIEWS))
    )
    small = SmallDemo(settings, ratings)
    small.run("history")
    step, archive = small.step("log"), create_archive(settings.archive)
    with KafkaLog(settings.kafka) as log:
        ranges = log.ranges(*settings.kafka.topics.interactions)
    ends = {partition: offsets.end - 1 for partition, offsets in ranges.items() if offsets.end}
    largest = max(ends, key=ends.__getitem__)

    async def archived() -> None:
        waiting = asyncio.ensure_future(small.demo.step("log"))
        append(archive.table, [], {largest: ends[largest] - 1})
        while step.done < ends[largest]:
            await asyncio.sleep(0.05)
        assert not waiting.done()
        append(EventArchive.open(settings.archive).table, [], ends)
        await waiting

    asyncio.run(archived())
    assert step.note == f"{REVIEWS - 2} of {REVIEWS - 2} events in the event archive"
    assert "log" in small.supervisor.milestones


def test_without_a_history_the_demo_ends_with_the_reason(
    settings: Settings, tmp_path: Path
) -> None:
    small = SmallDemo(settings, tmp_path / "gone.csv")
    with pytest.raises(Unavailable, match=r"gone\.csv"):
        small.run("history")
    assert small.step("history").state == "failed"


def test_no_model_is_trained_if_there_is_a_champion_that_the_api_does_not_serve_yet(
    settings: Settings, tmp_path: Path
) -> None:
    folder, _ = artifact.write(
        tmp_path / "models",
        "a-champion",
        lambda folder: (folder / "file").touch(),
        items=1,
        created="now",
    )
    announce(settings.kafka, folder)
    small = SmallDemo(settings, tmp_path / "ratings.csv")
    small.run("log", "training")
    assert small.step("log").note == "not needed: there is a model"
    assert small.step("training").note == "continues with model a-champion"


def test_the_progress_of_a_training_is_shown(settings: Settings, tmp_path: Path) -> None:
    small = SmallDemo(settings, tmp_path / "ratings.csv")
    step = small.step("training")
    with report_progress(settings.home) as report:
        report("fitting on 300 interactions")
        small.demo.show_training(step)
    assert step.note == "fitting on 300 interactions"

"""The demo's stages, against a real Kafka: which of them it can do without, and which end it."""

from __future__ import annotations

import asyncio
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from afterclick import artifact
from afterclick.errors import Unavailable
from afterclick.settings import Settings
from infra.stack.cut import Cut
from infra.stack.demo import Demo, DemoOptions
from infra.stack.layout import lay_out
from infra.stack.supervisor import Stack
from infra.stack.view import View
from tests.waiting import PATIENCE_S
from training.publish import announce
from training.schedule import told

DAY_S = 86_400
REVIEWS = 12


@pytest.fixture(autouse=True)
def own_topics(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the demo's commands write goes to this test's topics."""
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)


def demo_on(settings: Settings, ratings: Path) -> tuple[Demo, StringIO]:
    """A demo of nothing but ratings, on a stack whose servers run already; and what it says."""
    said = StringIO()
    view = View(Console(file=said, width=200))
    until_ms = (REVIEWS - 2) * DAY_S * 1000
    cut = Cut(
        str(ratings),
        "ratings",
        "named",
        rows=REVIEWS,
        bad=0,
        history=REVIEWS - 2,
        until_ms=until_ms,
        user="u1",
    )
    stack = Stack(lay_out(settings), [], [], view.note)
    return Demo(stack, DemoOptions(cut), view), said


def test_a_dataset_of_ratings_alone_has_no_catalogue_and_is_replayed(
    settings: Settings, tmp_path: Path
) -> None:
    ratings = tmp_path / "ratings_Electronics.csv"
    ratings.write_text(
        "".join(f"u{day % 3},i{day % 4},5.0,{day * DAY_S}\n" for day in range(REVIEWS))
    )
    demo, said = demo_on(settings, ratings)

    async def stages() -> None:
        for name in ("catalogue", "people", "history"):
            await demo._stage(name)

    asyncio.run(stages())
    states = {stage.name: stage.state for stage in demo.stages if stage.state != "waiting"}
    assert states == {"catalogue": "failed", "people": "failed", "history": "done"}
    assert f"history: {REVIEWS - 2} reviews before" in said.getvalue()
    notes = {stage.name: stage.note for stage in demo.stages}
    assert "items file" in notes["catalogue"]
    assert "items file" in notes["people"]


def test_without_a_history_the_demo_ends_and_says_why(settings: Settings, tmp_path: Path) -> None:
    demo, _ = demo_on(settings, tmp_path / "gone.csv")
    with pytest.raises(Unavailable, match=r"gone\.csv"):
        asyncio.run(demo._stage("history"))
    assert next(stage.state for stage in demo.stages if stage.name == "history") == "failed"


def test_a_champion_is_not_trained_again_though_the_api_does_not_serve_it_yet(
    settings: Settings, tmp_path: Path
) -> None:
    folder, _ = artifact.write(
        tmp_path / "models",
        "a-champion",
        lambda at: (at / "file").write_bytes(b"1"),
        items=1,
        created="now",
    )
    announce(settings.kafka, folder)
    demo, _ = demo_on(settings, tmp_path / "ratings.csv")

    async def stages() -> None:
        for name in ("log", "training"):
            await demo._stage(name)

    asyncio.run(stages())
    notes = {stage.name: stage.note for stage in demo.stages}
    assert notes["log"] == "not waited for: there is a model"
    assert notes["training"] == "goes on with model a-champion"


def test_a_training_that_runs_is_shown_by_what_it_does(settings: Settings, tmp_path: Path) -> None:
    demo, _ = demo_on(settings, tmp_path / "ratings.csv")
    stage = next(stage for stage in demo.stages if stage.name == "training")

    async def shown() -> str:
        following = asyncio.create_task(demo._follow_training(stage))
        async with asyncio.timeout(PATIENCE_S):
            while not stage.note:
                await asyncio.sleep(0.05)
        following.cancel()
        return stage.note

    with told(settings.home) as tell:
        tell("fitting on 300 interactions")
        assert asyncio.run(shown()) == "fitting on 300 interactions"

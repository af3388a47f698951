"""`afterclick train`: the whole pipeline once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from training.pipeline import Pipeline

app = typer.Typer(help="Train a model on the log and publish it.", no_args_is_help=True)


@app.command()
def train(
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line.")
    ] = False,
) -> None:
    """Train on the log and publish the model, if it is not worse than the one that is served.

    Where nothing is served yet, a model without its ranker is published on the way.
    """
    start = time.monotonic()
    with steps_of("train") as steps:
        report, evaluation, published = steps.run_all()
    if json:
        facts = {"etl": report.model_dump(), "evaluation": evaluation.model_dump()}
        as_json({**published.model_dump(), "seconds": round(time.monotonic() - start, 1), **facts})


@app.command()
def retrain(
    every: Annotated[float, typer.Option(min=1, help="Minutes between trainings.")] = 360.0,
    events: Annotated[
        int, typer.Option(min=1, help="New events that make a training due before.")
    ] = 50_000,
) -> None:
    """Train again by the clock and after so many new events, until it is told to stop (SIGTERM).

    One training at a time, at low priority; its state is in retrain.json in the home folder.
    """
    import signal
    import threading

    import structlog

    from afterclick.settings import Settings
    from training.schedule import Retrain

    structlog.get_logger().info(
        "training by the clock", every_minutes=every, or_after_events=events
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    Retrain(Settings(), every * 60, events).run(stop)


@contextmanager
def steps_of(what: str) -> Iterator[Pipeline]:
    """The pipeline of this installation, while no other training runs. Raises AlreadyRunning.

    What it does stands in retrain.json meanwhile, for whoever watches.
    """
    import os
    from functools import partial

    from afterclick.settings import Settings
    from training.pipeline import Pipeline
    from training.publish import champion
    from training.workspace import report_progress, training_lock

    settings = Settings()
    step_back = partial(
        os.nice, 5
    )  # what is served goes first; where nothing is, people wait for this
    if champion(settings.kafka) is not None:
        step_back()
    start = time.monotonic()
    with (
        training_lock(settings.home, f"`afterclick {what}`"),
        report_progress(settings.home) as tell,
    ):

        def progress(message: str) -> None:
            tell(message)
            say(message, time.monotonic() - start)

        yield Pipeline(settings, progress, step_back)


def say(message: str, seconds: float | None = None) -> None:
    """A line of progress on standard error."""
    from rich.console import Console

    stamp = "" if seconds is None else f"[dim]{seconds:6.1f}s[/dim]  "
    Console(stderr=True).print(f"{stamp}{message}", highlight=False)


def as_json(answer: dict[str, Any]) -> None:
    """One JSON object as the last line of standard output."""
    import orjson

    typer.echo(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY).decode())

"""`afterclick ingest`: send a dataset to Kafka."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from infra.cli.data import (
    ColumnsOption,
    DatasetArgument,
    EncodingOption,
    read_options,
    resolve,
)
from infra.cli.output import AsJson, emit, progress_bar, stop_signals

if TYPE_CHECKING:
    from afterclick.io.home import ReplayStatus
    from infra.demo.histories import SimilarUser
    from ingest.replay import Summary

app = typer.Typer(help="Send a dataset to Kafka.", no_args_is_help=True)


@app.command()
def replay(
    dataset: DatasetArgument = None,
    speed: Annotated[
        str, typer.Option(help="Event time per second: 1h/s, 30m/s, 2d/s, 60x; or max.")
    ] = "max",
    rate: Annotated[
        float | None, typer.Option(help="Events per second, instead of --speed.")
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option("--from", help="Skip events before this day or time (UTC)."),
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(help="Skip events from this day or time on (UTC).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum of events.")] = None,
    clock: Annotated[
        Literal["original", "rebased"],
        typer.Option(
            help="Original event times, or moved so that the newest is the start of the first "
            "replay."
        ),
    ] = "original",
    restart: Annotated[bool, typer.Option(help="Start again from the first event.")] = False,
    columns: ColumnsOption = None,
    encoding: EncodingOption = None,
    as_json: AsJson = False,
) -> None:
    """Replay reviews in event-time order; an interrupted replay continues where it stopped."""
    from afterclick.settings import Settings
    from infra.embedded.kafka import ensure_topics
    from ingest.replay import ReplayOptions
    from ingest.replay import replay as run
    from ingest.replay_control import parse_pace
    from ingest.sorting import sort_by_time

    options = ReplayOptions(
        pace=parse_pace(speed, rate),
        rebased=clock == "rebased",
        from_ms=_ms(since),
        until_ms=_ms(until),
        limit=limit,
        restart=restart,
    )
    settings = Settings()
    chosen = resolve(dataset, read_options(columns, encoding)).dataset
    data = sort_by_time(chosen, settings.home)
    ensure_topics(settings)
    with stop_signals() as stop, _status_line(hidden=as_json) as show:
        summary = run(data, settings, options, on_status=show, stopping=stop.is_set)
    emit(asdict(summary), as_json, lambda: _summary(summary))


@app.command()
def items(
    dataset: DatasetArgument = None,
    columns: ColumnsOption = None,
    encoding: EncodingOption = None,
    as_json: AsJson = False,
) -> None:
    """Publish new and changed items of the catalogue."""
    from afterclick.settings import Settings
    from infra.embedded.kafka import ensure_topics
    from ingest.items import publish_items

    settings = Settings()
    chosen = resolve(dataset, read_options(columns, encoding)).dataset
    ensure_topics(settings)
    summary = publish_items(chosen, settings)
    counts = f"{summary.items:,} items, {summary.sent:,} new or changed and published"
    line = f"{summary.dataset}: {counts}, {summary.bad_lines:,} bad lines"
    emit(asdict(summary), as_json, line)


@app.command()
def people(
    dataset: DatasetArgument = None,
    until: Annotated[
        datetime | None, typer.Option(help="Skip events from this day or time on (UTC).")
    ] = None,
    clock: Annotated[
        Literal["original", "rebased"],
        typer.Option(help="Original event times, or those of the rebased replay."),
    ] = "original",
    as_json: AsJson = False,
) -> None:
    """Seed demo users with the history of a similar real user."""
    from afterclick.settings import Settings
    from infra.demo.histories import seed_demo_users
    from infra.embedded.kafka import ensure_topics
    from ingest.sorting import sort_by_time
    from ui.cards import demo_users

    settings = Settings()
    chosen = resolve(dataset).dataset
    ensure_topics(settings)
    tastes = {user.user_id: user.tastes for user in demo_users()}
    data = sort_by_time(chosen, settings.home)
    rebased = clock == "rebased"
    seeded = seed_demo_users(chosen, data, settings, tastes, until_ms=_ms(until), rebased=rebased)
    reviews = {user_id: similar.reviews for user_id, similar in seeded.items()}
    lines = [f"{user.name}: {_history(seeded.get(user.user_id))}" for user in demo_users()]
    emit({"people": reviews, "sent": sum(reviews.values())}, as_json, "\n".join(lines))


@app.command()
def pause() -> None:
    """Pause the running replay."""
    _control("paused")


@app.command()
def resume() -> None:
    """Resume a paused replay."""
    _control("running")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show the progress of the current or the last replay."""
    from afterclick.io.home import ReplayStatus
    from afterclick.settings import Settings
    from ingest.replay_control import ReplayFiles

    home = Settings().home
    newest, running = ReplayStatus.read(home), ReplayFiles(home).running()
    line = "no replay has run from this home"
    if newest:
        line = ("" if running else "(not running) ") + _describe(newest)
    emit({"active": running, **(newest.model_dump() if newest else {})}, as_json, line)


def _control(state: str) -> None:
    from afterclick.errors import Unavailable
    from afterclick.io.home import ReplayControl
    from afterclick.settings import Settings
    from ingest.replay_control import ReplayFiles

    home = Settings().home
    if not ReplayFiles(home).running():
        raise Unavailable("no replay is running: start one with `afterclick ingest replay`")
    control = ReplayControl.read(home) or ReplayControl()
    control.model_copy(update={"state": state}).write(home)


def _ms(time: datetime | None) -> int | None:
    if time is None:
        return None
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


@contextmanager
def _status_line(hidden: bool) -> Iterator[Callable[[ReplayStatus], None]]:
    """A progress bar with rate and time left, on standard error."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[how]}"))
    with progress_bar(*columns, hidden=hidden) as progress:
        task = progress.add_task("replay", total=None, how="")

        def show(status: ReplayStatus) -> None:
            progress.update(
                task,
                description=status.state,
                completed=status.delivered,
                total=status.total,
                how=_pace(status),
            )

        yield show


def _pace(status: ReplayStatus) -> str:
    day = datetime.fromtimestamp(status.event_time_ms / 1000, UTC).date()
    left = "" if status.eta_s is None else f", {timedelta(seconds=int(status.eta_s))} left"
    waiting = ", waiting for Kafka" if status.kafka_away else ""
    return f"{status.rate:,.0f} events/s, at {day}{left}{waiting}"


def _describe(status: ReplayStatus) -> str:
    counts = f"{status.delivered:,} of {status.total:,}"
    return f"{status.state}: {status.dataset}, {counts}, {_pace(status)}"


def _summary(summary: Summary) -> str:
    if not summary.sent and not summary.remaining:
        return "every event of this selection is delivered already (--restart sends them again)"
    return (
        f"{summary.state}: {summary.sent:,} events delivered in {summary.seconds:.1f} s "
        f"({summary.events_per_s:,.0f}/s), {summary.remaining:,} left, "
        f"{summary.bad_lines:,} bad lines"
    )


def _history(similar: SimilarUser | None) -> str:
    if similar is None:
        return "no similar user"
    return f"{similar.reviews} reviews, {similar.matches} matching their taste"

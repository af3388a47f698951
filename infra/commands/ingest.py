"""`afterclick ingest`: bring a dataset into Kafka."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from infra.commands.data import DatasetArgument, JsonOption, choose

if TYPE_CHECKING:
    from afterclick.io.home import ReplayStatus
    from ingest.replay import Summary

app = typer.Typer(help="Bring a dataset into Kafka.", no_args_is_help=True)


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
        typer.Option("--from", help="Leave out what is before this day or time (UTC)."),
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(help="Leave out what is from this day or time on (UTC).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Send at most so many events.")] = None,
    clock: Annotated[
        Literal["original", "rebased"],
        typer.Option(
            help="Event times as they were, or moved so that the last is the first replay's start."
        ),
    ] = "original",
    restart: Annotated[
        bool, typer.Option(help="From the beginning, although a replay got further.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Replay reviews in event-time order. Stopped, it goes on where it was; repeated, it changes
    nothing.
    """
    from afterclick.settings import Settings
    from infra.topics_admin import ensure_topics
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
    data = sort_by_time(choose(dataset).dataset, settings.home)
    ensure_topics(settings)
    with _stop_signals() as stopping, _status_line(hidden=as_json) as show:
        summary = run(data, settings, options, on_status=show, stopping=stopping)
    _print_summary(summary, as_json)


@app.command()
def items(dataset: DatasetArgument = None, as_json: JsonOption = False) -> None:
    """Publish the catalogue to the items topic: what is new or changed."""
    from afterclick.settings import Settings
    from infra.topics_admin import ensure_topics
    from ingest.items import publish_items

    settings = Settings()
    chosen = choose(dataset).dataset
    ensure_topics(settings)
    summary = publish_items(chosen, settings)
    if as_json:
        _print_json(summary.as_dict())
    else:
        typer.echo(
            f"{summary.dataset}: {summary.items:,} items, {summary.sent:,} new or changed and published, "
            f"{summary.bad_lines:,} bad lines"
        )


@app.command()
def people(
    dataset: DatasetArgument = None,
    until: Annotated[
        datetime | None, typer.Option(help="Leave out what is from this day or time on (UTC).")
    ] = None,
    clock: Annotated[
        Literal["original", "rebased"],
        typer.Option(help="Event times as they were, or as the replay's."),
    ] = "original",
    as_json: JsonOption = False,
) -> None:
    """Give the shop's toy users the history of somebody in the data with their tastes."""
    from afterclick.settings import Settings
    from infra.demo.histories import seed_demo_users
    from infra.topics_admin import ensure_topics
    from ingest.sorting import sort_by_time
    from ui.demo_users import demo_users

    settings = Settings()
    chosen = choose(dataset).dataset
    ensure_topics(settings)
    tastes = {user.user_id: user.tastes for user in demo_users()}
    data = sort_by_time(chosen, settings.home)
    found = seed_demo_users(chosen, data, settings, tastes, until_ms=_ms(until), rebased=clock == "rebased")
    if as_json:
        reviews = {person: lender.reviews for person, lender in found.items()}
        _print_json({"people": reviews, "sent": sum(reviews.values())})
        return
    for user in demo_users():
        lender = found.get(user.user_id)
        has = (
            f"{lender.reviews} reviews, {lender.matches} to their taste"
            if lender
            else "nobody like them"
        )
        typer.echo(f"{user.name}: {has}")


@app.command()
def pause() -> None:
    """Make the running replay wait."""
    _ask("paused")


@app.command()
def resume() -> None:
    """Let a paused replay go on."""
    _ask("running")


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Show how the replay goes, or how the last one went."""
    from afterclick.settings import Settings
    from ingest.replay_control import replay_files

    files = replay_files(Settings().home)
    found = files.status()
    if as_json:
        _print_json({"active": files.running(), **(found.model_dump() if found else {})})
    elif found is None:
        typer.echo("No replay ran from this home yet.")
    else:
        typer.echo(("" if files.running() else "(not running) ") + _describe(found))


def _ask(state: str) -> None:
    from afterclick.errors import Unavailable
    from afterclick.settings import Settings
    from ingest.replay_control import replay_files

    files = replay_files(Settings().home)
    if not files.running():
        raise Unavailable("no replay runs; start one with `afterclick ingest replay`")
    files.ask(files.control().model_copy(update={"state": state}))


def _ms(time: datetime | None) -> int | None:
    if time is None:
        return None
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM end the replay in order: what was sent is flushed, and the progress kept.
    """
    stop = threading.Event()
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _status_line(hidden: bool) -> Iterator[Callable[[ReplayStatus], None]]:
    """A progress bar with rate and time left, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[how]}"),
    )
    with Progress(*columns, console=console, disable=hidden) as progress:
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
    left = "" if status.eta_s is None else f", {_duration(status.eta_s)} left"
    away = ", Kafka is away: waiting" if status.kafka_away else ""
    return f"{status.rate:,.0f} events/s, at {day}{left}{away}"


def _describe(status: ReplayStatus) -> str:
    return f"{status.state}: {status.dataset}, {status.delivered:,} of {status.total:,}, {_pace(status)}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _print_summary(summary: Summary, as_json: bool) -> None:
    if as_json:
        _print_json(summary.as_dict())
        return
    if not summary.sent and not summary.remaining:
        typer.echo(
            "Nothing left to send: every event of this selection is delivered (--restart sends again)."
        )
        return
    typer.echo(
        f"{summary.state}: {summary.sent:,} events delivered in {summary.seconds:.1f} s "
        f"({summary.events_per_s:,.0f}/s), {summary.remaining:,} left, {summary.bad_lines:,} bad lines"
    )


def _print_json(content: object) -> None:
    import orjson

    typer.echo(orjson.dumps(content).decode())

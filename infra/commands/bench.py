"""`afterclick bench`: what the parts can do, measured."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import orjson
import typer

from afterclick.errors import Unavailable

app = typer.Typer(help="Measure: real servers, real load.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure: real servers, real load."""
    if find_spec("infra.benchmarks") is None:
        raise Unavailable(
            "benchmarks are not part of the installed package: run them in a checkout"
        )


@app.command()
def serve(
    rate: Annotated[float, typer.Option(help="Requests per second of the fixed-rate run.")] = 300.0,
    seconds: Annotated[float, typer.Option(help="Length of the fixed-rate run.")] = 20.0,
    items: Annotated[int, typer.Option(help="Items of the shop.")] = 60_000,
    users: Annotated[int, typer.Option(help="Users with a history.")] = 2000,
    plain: Annotated[
        bool, typer.Option(help="Also run the plain FastAPI version of the route.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
) -> None:
    """How fast the API answers: latencies at a fixed rate (open loop), then requests per second at most."""
    from afterclick.settings import Settings
    from infra.benchmarks.serve_load import Bench, run

    bench = Bench(rate=rate, seconds=seconds, items=items, users=users, plain=plain)
    _print(run(bench, Settings().jars), as_json)


@app.command()
def swap(
    swaps: Annotated[int, typer.Option(min=1, help="Models published, one after the other.")] = 20,
    rate: Annotated[float, typer.Option(help="Requests per second meanwhile.")] = 200.0,
    items: Annotated[int, typer.Option(help="Items of the shop.")] = 60_000,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
) -> None:
    """Models replaced while the API answers: errors, and latencies beside those of a quiet time."""
    from afterclick.settings import Settings
    from infra.benchmarks.model_swap import Bench, run

    _print(run(Bench(swaps=swaps, rate=rate, items=items), Settings().jars), as_json)


@app.command()
def retrain(
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 50.0,
    events: Annotated[float, typer.Option(help="New events per second meanwhile.")] = 100.0,
    due: Annotated[int, typer.Option(min=1, help="New events that make a training due.")] = 2_000,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
) -> None:
    """A model trained, judged, published and swapped in while events come and lists are asked for."""
    from afterclick.settings import Settings
    from infra.benchmarks.retraining import Bench, run

    _print(run(Bench(rate=rate, events_per_s=events, due=due), Settings().jars), as_json)


@app.command()
def sockets(
    clients: Annotated[int, typer.Option(min=2, help="Viewers on WebSockets.")] = 500,
    stalled: Annotated[int, typer.Option(min=1, help="Those of them that never read.")] = 25,
    seconds: Annotated[float, typer.Option(help="Length of each of the three phases.")] = 20.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
) -> None:
    """Many viewers, some of whom never read: what the others wait, and what the API's memory does."""
    from afterclick.settings import Settings
    from infra.benchmarks.websockets import Bench, run

    _print(run(Bench(clients=clients, stalled=stalled, seconds=seconds), Settings().jars), as_json)


@app.command()
def degrade(
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 100.0,
    away: Annotated[float, typer.Option(help="Seconds that each part is away.")] = 8.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
) -> None:
    """Redis, Kafka, a model, SQL away one by one under load: what lists say, how late, how soon mended."""
    from afterclick.settings import Settings
    from infra.benchmarks.degradation import Bench, run

    _print(run(Bench(rate=rate, away=away), Settings().jars), as_json)


@app.command()
def ingest(
    events: Annotated[int, typer.Option(help="Events in the log.")] = 300_000,
    users: Annotated[int, typer.Option(help="Users they come from.")] = 100_000,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
) -> None:
    """How many events a second the micro-batch trigger applies, exactly; beside a naive writer."""
    from afterclick.settings import Settings
    from infra.benchmarks.throughput import Bench, run

    _print(run(Bench(events=events, users=users), Settings().jars), as_json)


@app.command()
def index(
    items: Annotated[
        list[int] | None,
        typer.Option(min=1000, help="Catalogue sizes; 60,000 and 1,000,000 by default."),
    ] = None,
    dim: Annotated[int, typer.Option(min=2, help="Length of a vector: the model's rank.")] = 64,
    queries: Annotated[int, typer.Option(min=1, help="Queries that are timed.")] = 300,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
) -> None:
    """Flat, IVF and HNSW over made-up clustered vectors: build time, memory, recall, time of a query."""
    from infra.benchmarks.ann_comparison import Bench, run

    figures = run(Bench(items=tuple(items or Bench.items), dim=dim, queries=queries))
    if as_json:
        typer.echo(orjson.dumps(figures))
        return
    for row in figures["rows"]:
        typer.echo("  ".join(f"{name} {value}" for name, value in row.items()))


@app.command()
def freshness(
    rate: Annotated[float, typer.Option(help="Events per second.")] = 200.0,
    seconds: Annotated[float, typer.Option(help="Length of the real-time run.")] = 300.0,
    boundaries: Annotated[int, typer.Option(help="Hand-overs to another query in that time.")] = 2,
    chart: Annotated[Path | None, typer.Option(help="Draw the run into this PNG.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
) -> None:
    """From POST /feedback to the changed list on the user's WebSocket and in GET, in milliseconds."""
    from afterclick.settings import Settings
    from infra.benchmarks.freshness import Bench, run

    bench = Bench(rate=rate, seconds=seconds, boundaries=boundaries, chart=chart)
    _print(run(bench, Settings().jars), as_json)


@app.command()
def ui(
    likes: Annotated[int, typer.Option(min=2, help="Likes that are measured.")] = 60,
    items: Annotated[int, typer.Option(min=100, help="Items of the shop.")] = 5_000,
    trigger: Annotated[str, typer.Option(help="real-time or micro-batch.")] = "real-time",
    viewers: Annotated[
        int,
        typer.Option(min=0, max=100, help="Then time lists alone, beside so many sockets, pages."),
    ] = 0,
    chromium: Annotated[str, typer.Option(help="The browser's program.")] = "chromium",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
) -> None:
    """From the click on Like to the changed grid on the screen, in a real browser, stage by stage."""
    from afterclick.settings import Settings
    from infra.benchmarks.ui_latency import Bench, run

    bench = Bench(likes=likes, items=items, trigger=trigger, viewers=viewers, chromium=chromium)
    _print(run(bench, Settings().jars), as_json)


@app.command()
def faults(
    long: Annotated[
        bool, typer.Option("--long", help="100,000 events, 10 kills of the job, 5 of servers.")
    ] = False,
    events: Annotated[int | None, typer.Option(min=1000, help="Events of each case.")] = None,
    kills: Annotated[int | None, typer.Option(min=1, help="Kills of each process.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only these cases; repeat for several.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
) -> None:
    """Kill, cut, flood and resend, then prove the state. Each case has a control without the protection.

    Exit 1 if anything was lost or doubled, or a control came out right.
    """
    from afterclick.settings import Settings
    from infra.benchmarks.faults.fault_case import Bench
    from infra.benchmarks.faults.run_cases import run

    bench = Bench.long() if long else Bench()
    bench = replace(
        bench,
        events=events or bench.events,
        job_kills=kills or bench.job_kills,
        server_kills=kills or bench.server_kills,
        only=tuple(only or ()),
    )
    figures = run(bench, Settings().jars)
    if as_json:
        typer.echo(orjson.dumps(figures))
    else:
        for case in figures["cases"]:
            typer.echo(
                f"{case['name']:20} kills {case['kills']:2}  events {case['events']:8,}  "
                f"lost {case['lost']}  double {case['double']}  recovery {case['recovery_s']:5.1f} s  "
                f"{case['note']}"
            )
    if not figures["passed"]:
        raise typer.Exit(1)


@app.command()
def poison(
    dataset: Annotated[
        Path | None,
        typer.Option(envvar="DATASET", help="A dataset folder or file; else a shop is generated."),
    ] = None,
    cut: Annotated[str | None, typer.Option(help="The day after the attack, yyyy-mm-dd.")] = None,
    percent: Annotated[
        list[float] | None,
        typer.Option(help="Fake accounts per 100 genuine users; 1, 3 and 5 by default."),
    ] = None,
    learned: Annotated[
        float,
        typer.Option(help="Per cent of the attack that is in the training log, too; 0: none."),
    ] = 3.0,
    targets: Annotated[int, typer.Option(min=1, help="Items pushed, one at a time.")] = 3,
    fillers: Annotated[
        int, typer.Option(min=0, help="Popular items each account votes for, too.")
    ] = 2,
    questions: Annotated[int, typer.Option(min=10, help="Genuine questions of each kind.")] = 1000,
    model: Annotated[
        bool, typer.Option(help="Also attack the personal lists of a model: minutes.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
) -> None:
    """Fake accounts push an item: its gain in HR@10 and the genuine NDCG@10, with the guards and without."""
    from afterclick.settings import Settings
    from infra.benchmarks.attacked_lists import Request
    from infra.benchmarks.push_attack import Bench, run

    shares = tuple(value / 100 for value in percent or (1.0, 3.0, 5.0))
    request = Request(shares, learned / 100, targets, questions, fillers)
    figures = run(Bench(dataset, cut, model, request), Settings())
    if as_json:
        typer.echo(orjson.dumps(figures))
        return
    for kind in ("trending", "lists"):
        for row in figures.get(kind, {"rows": ()})["rows"]:
            typer.echo(
                f"{kind:9}" + "".join(f"  {name} {_short(value)}" for name, value in row.items())
            )


def _short(value: object) -> object:
    if isinstance(value, list):
        return [_short(one) for one in value]
    return f"{value:.4f}" if isinstance(value, float) else value


def _print(figures: dict[str, object], as_json: bool) -> None:
    if as_json:
        typer.echo(orjson.dumps(figures))
        return
    for name, value in figures.items():
        typer.echo(f"{name:24} {value}")

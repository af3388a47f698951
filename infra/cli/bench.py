"""`afterclick bench`: measurements on real servers under real load. Needs a checkout."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from afterclick.errors import Unavailable
from infra.cli.output import AsJson, emit

if TYPE_CHECKING:
    from infra.benchmarks.harness import Benchmark

app = typer.Typer(help="Measure: real servers, real load.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure: real servers, real load."""
    if find_spec("infra.benchmarks") is None:
        raise Unavailable(
            "benchmarks are not part of the package: run `afterclick bench` in a checkout"
        )


@app.command()
def serve(
    rate: Annotated[float, typer.Option(help="Requests per second of the fixed-rate run.")] = 300.0,
    seconds: Annotated[float, typer.Option(help="Length of the fixed-rate run.")] = 20.0,
    items: Annotated[int, typer.Option(help="Items of the shop.")] = 60_000,
    users: Annotated[int, typer.Option(help="Users with a history.")] = 2000,
    plain: Annotated[
        bool,
        typer.Option(help="Also measure a plain FastAPI version of the route (with one worker)."),
    ] = True,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes of the API.")] = 1,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="Compare fresh lists with a checkout of another commit (after `make setup` there)."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Latency of the API at a fixed rate (open loop), then its maximum requests per second."""
    from infra.benchmarks.serve_load import ServeBenchmark

    benchmark = ServeBenchmark(
        rate=rate,
        seconds=seconds,
        items=items,
        users=users,
        plain=plain,
        workers=workers,
        baseline=baseline and baseline.absolute(),
    )
    emit(_run(benchmark), as_json)


@app.command()
def swap(
    swaps: Annotated[int, typer.Option(min=1, help="Models published one after the other.")] = 20,
    rate: Annotated[float, typer.Option(help="Requests per second during the swaps.")] = 200.0,
    items: Annotated[int, typer.Option(help="Items of the shop.")] = 60_000,
    as_json: AsJson = False,
) -> None:
    """Errors and latencies while models are replaced, compared with a run without swaps."""
    from infra.benchmarks.model_swap import ModelSwapBenchmark

    emit(_run(ModelSwapBenchmark(swaps=swaps, rate=rate, items=items)), as_json)


@app.command()
def retrain(
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 50.0,
    events: Annotated[float, typer.Option(help="New events per second under load.")] = 100.0,
    due: Annotated[int, typer.Option(min=1, help="New events that trigger a training.")] = 2_000,
    as_json: AsJson = False,
) -> None:
    """A model is trained, evaluated, published and swapped in under load, while events arrive."""
    from infra.benchmarks.model_swap import RetrainingBenchmark

    emit(_run(RetrainingBenchmark(rate=rate, events_per_s=events, due=due)), as_json)


@app.command()
def sockets(
    clients: Annotated[int, typer.Option(min=2, help="WebSocket viewers.")] = 500,
    stalled: Annotated[int, typer.Option(min=1, help="Viewers among them that never read.")] = 25,
    seconds: Annotated[float, typer.Option(help="Length of each of the three phases.")] = 20.0,
    as_json: AsJson = False,
) -> None:
    """Push latency and memory of the API with many viewers, some of which never read."""
    from infra.benchmarks.websockets import WebSocketBenchmark

    benchmark = WebSocketBenchmark(clients=clients, stalled=stalled, seconds=seconds)
    emit(_run(benchmark), as_json)


@app.command()
def degrade(
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 100.0,
    away: Annotated[float, typer.Option(help="Seconds of each outage.")] = 8.0,
    as_json: AsJson = False,
) -> None:
    """Degradation test: take down Redis, Kafka, the model and SQL in turn under load."""
    from infra.benchmarks.degradation import DegradationBenchmark

    emit(_run(DegradationBenchmark(rate=rate, away=away)), as_json)


@app.command()
def ingest(
    events: Annotated[int, typer.Option(help="Events in the log.")] = 300_000,
    users: Annotated[int, typer.Option(help="Users of the events.")] = 100_000,
    as_json: AsJson = False,
) -> None:
    """Events per second that micro-batches apply exactly, compared with a naive writer."""
    from infra.benchmarks.throughput import ThroughputBenchmark

    emit(_run(ThroughputBenchmark(events=events, users=users)), as_json)


@app.command()
def index(
    items: Annotated[
        list[int] | None,
        typer.Option(min=1000, help="Catalogue sizes; 60,000 and 1,000,000 by default."),
    ] = None,
    dim: Annotated[int, typer.Option(min=2, help="Length of a vector: the model's rank.")] = 64,
    queries: Annotated[int, typer.Option(min=1, help="Queries to time.")] = 300,
    as_json: AsJson = False,
) -> None:
    """Flat, IVF and HNSW indexes of synthetic vectors: build time, memory, recall, query time."""
    from infra.benchmarks.ann_comparison import AnnBenchmark

    sizes = tuple(items or AnnBenchmark.items)
    figures = _run(AnnBenchmark(items=sizes, dim=dim, queries=queries))
    _print_rows(figures, figures["rows"], as_json)


@app.command()
def freshness(
    rate: Annotated[float, typer.Option(help="Events per second.")] = 200.0,
    seconds: Annotated[float, typer.Option(help="Length of the real-time run.")] = 300.0,
    boundaries: Annotated[int, typer.Option(help="Hand-overs between queries in that time.")] = 2,
    chart: Annotated[Path | None, typer.Option(help="Draw the run into this PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Milliseconds from POST /feedback to the changed list on a WebSocket and in GET."""
    from infra.benchmarks.freshness import FreshnessBenchmark

    benchmark = FreshnessBenchmark(rate, seconds, boundaries=boundaries, chart=chart)
    emit(_run(benchmark), as_json)


@app.command()
def ui(
    likes: Annotated[int, typer.Option(min=2, help="Likes to measure.")] = 60,
    items: Annotated[int, typer.Option(min=100, help="Items of the shop.")] = 5_000,
    trigger: Annotated[str, typer.Option(help="real-time or micro-batch.")] = "real-time",
    viewers: Annotated[
        int,
        typer.Option(min=0, max=100, help="Also time lists with this many sockets, then pages."),
    ] = 0,
    chromium: Annotated[str, typer.Option(help="The browser's program.")] = "chromium",
    as_json: AsJson = False,
) -> None:
    """From the click on Like to the changed grid in a real browser, stage by stage."""
    from infra.benchmarks.ui_latency import UiLatencyBenchmark

    benchmark = UiLatencyBenchmark(
        likes=likes, items=items, trigger=trigger, viewers=viewers, chromium=chromium
    )
    emit(_run(benchmark), as_json)


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
    as_json: AsJson = False,
) -> None:
    """Kill, cut, flood and resend, then verify the state; compare with controls without protection.

    Exit 1 if events were lost or doubled, or if a control ended in a correct state.
    """
    from infra.benchmarks.faults.fault_case import FaultLoad
    from infra.benchmarks.faults.fault_suite import FaultsBenchmark

    load = FaultLoad.long() if long else FaultLoad()
    load = replace(
        load,
        events=events or load.events,
        job_kills=kills or load.job_kills,
        server_kills=kills or load.server_kills,
    )
    figures = _run(FaultsBenchmark(load, tuple(only or ())))
    lines = (
        f"{case['name']:20} kills {case['kills']:2}  events {case['events']:8,}  "
        f"lost {case['lost']}  double {case['double']}  "
        f"recovery {case['recovery_s']:5.1f} s  {case['note']}"
        for case in figures["cases"]
    )
    emit(figures, as_json, "\n".join(lines))
    if not figures["passed"]:
        raise typer.Exit(1)


@app.command()
def hostile(
    rate: Annotated[float, typer.Option(help="Requests per second of the genuine client.")] = 50.0,
    seconds: Annotated[
        float, typer.Option(help="Seconds without an attack, and at least of each.")
    ] = 20.0,
    items: Annotated[int, typer.Option(help="Items of the shop.")] = 26_000,
    scale: Annotated[
        float, typer.Option(help="Multiplies requests and connections of the attacks.")
    ] = 1.0,
    only: Annotated[
        list[str] | None, typer.Option(help="Only these attacks; repeat for several.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Latency of a genuine client, and memory of the API, during attacks by other clients."""
    from infra.benchmarks.hostile import HostileBenchmark

    benchmark = HostileBenchmark(rate, seconds, items, scale=scale, only=tuple(only or ()))
    figures = _run(benchmark)
    _print_rows(figures, figures["cases"], as_json)


@app.command()
def loop(
    items: Annotated[int, typer.Option(min=1_000, help="Items of the shop.")] = 500_000,
    requests: Annotated[int, typer.Option(min=1, help="Requests of each kind.")] = 20,
    as_json: AsJson = False,
) -> None:
    """CPU time of the API's event loop per kind of request, and the longest it ran at once."""
    from infra.benchmarks.event_loop import EventLoopBenchmark

    figures = _run(EventLoopBenchmark(items, requests=requests))
    _print_rows(figures, figures["kinds"], as_json)


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(min=0.5, help="Minutes of traffic.")] = 30.0,
    events: Annotated[float, typer.Option(help="Feedback events per second.")] = 30.0,
    kills: Annotated[
        int, typer.Option(min=0, help="Kills: stream job, Valkey, API and Kafka in turn.")
    ] = 8,
    retrainings: Annotated[int, typer.Option(min=0, help="Trainings meanwhile.")] = 2,
    erasures: Annotated[int, typer.Option(min=0, help="Users that are forgotten.")] = 3,
    as_json: AsJson = False,
) -> None:
    """A whole stack under traffic, kills, trainings and erasures: lost events, growth."""
    from infra.benchmarks.soak import SoakBenchmark

    benchmark = SoakBenchmark(
        minutes, events, kills=kills, retrainings=retrainings, erasures=erasures
    )
    emit(_run(benchmark), as_json)


@app.command()
def poison(
    dataset: Annotated[
        Path | None,
        typer.Option(envvar="DATASET", help="Dataset folder or file; default: a generated shop."),
    ] = None,
    cut: Annotated[str | None, typer.Option(help="The day after the attack, yyyy-mm-dd.")] = None,
    percent: Annotated[
        list[float] | None,
        typer.Option(help="Fake accounts per 100 genuine users; 1, 3 and 5 by default."),
    ] = None,
    learned: Annotated[
        float, typer.Option(help="Size of the attack that is also trained on; 0: none.")
    ] = 3.0,
    targets: Annotated[int, typer.Option(min=1, help="Items pushed, one at a time.")] = 3,
    fillers: Annotated[
        int, typer.Option(min=0, help="Popular items that each account also votes for.")
    ] = 2,
    questions: Annotated[int, typer.Option(min=10, help="Genuine queries of each kind.")] = 1000,
    moment: Annotated[
        list[str] | None,
        typer.Option(
            help="Day at whose start the trends are attacked; repeat. Default: six months."
        ),
    ] = None,
    model: Annotated[
        bool, typer.Option(help="Also attack the personal lists of a model: minutes.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Push attack: gain in HR@10 and genuine NDCG@10, with and without guards."""
    from infra.benchmarks.push_attack import AttackPlan, PushAttackBenchmark

    shares = tuple(value / 100 for value in percent or (1.0, 3.0, 5.0))
    plan = AttackPlan(shares, learned / 100, targets, questions, fillers)
    plan = replace(plan, moments=tuple(moment or ()))
    figures = _run(PushAttackBenchmark(dataset, cut, model, plan))
    groups = {
        f"trending, {name} moments": figures["trending"][name]
        for name in ("tuned", "unseen")
        if name in figures["trending"]
    }
    groups |= {"personal": figures["lists"]} if model else {}
    rows = [{"list": name} | row for name, group in groups.items() for row in group["rows"]]
    _print_rows(figures, rows, as_json)


@app.command()
def gate(
    challengers: Annotated[
        int, typer.Option(min=1, help="Simulated challengers of each quality and size.")
    ] = 200,
    as_json: AsJson = False,
) -> None:
    """Operating curve of the release gate: verdicts on challengers of known quality. Seconds."""
    from training.gate import operating_curve

    figures = operating_curve(challengers)
    _print_rows(figures, figures["points"], as_json)


@app.command("served-lists")
def served_lists(
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of visits and training.")] = 5,
    shoppers: Annotated[int, typer.Option(min=50, help="Simulated users of each shop.")] = 300,
    visits: Annotated[int, typer.Option(min=1, help="Lists per user and round.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Gain of a ranker that learns from served lists over one that learns from next items."""
    from infra.benchmarks.served_lists import ServedListsBenchmark

    benchmark = ServedListsBenchmark(rounds, shoppers, visits)
    figures = benchmark.run(lambda line: None if as_json else typer.echo(line))
    _print_rows(figures, figures["rounds"], as_json)


def _run(benchmark: Benchmark) -> dict[str, Any]:
    from afterclick.settings import Settings

    return benchmark.run(Settings())


def _print_rows(figures: dict[str, Any], rows: list[dict[str, Any]], as_json: bool) -> None:
    lines = ("  ".join(f"{n} {_short(v)}" for n, v in row.items()) for row in rows)
    emit(figures, as_json, "\n".join(lines))


def _short(value: object) -> object:
    if isinstance(value, list):
        return [_short(item) for item in value]
    return f"{value:.4f}" if isinstance(value, float) else value

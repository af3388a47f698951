"""`afterclick simulate`: shoppers with hidden tastes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ingest.simulation import Simulation

app = typer.Typer(help="simulate", no_args_is_help=True)


@app.command()
def simulate(
    shoppers: Annotated[int, typer.Option(min=2, help="How many.")] = 100,
    visits: Annotated[int, typer.Option(min=1, help="Lists that each looks at.")] = 10,
    n: Annotated[int, typer.Option("--n", min=1, max=100, help="Items in a list.")] = 10,
    pause: Annotated[
        float, typer.Option(min=0, help="Least seconds between two rounds of visits.")
    ] = 1.0,
    drift: Annotated[
        float,
        typer.Option(min=0, max=1, help="Probability that a taste changes between two visits."),
    ] = 0.0,
    hot: Annotated[
        list[str] | None, typer.Option(help="An item that everybody likes now; repeat for more.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed: the same people and tastes.")] = 7,
    control: Annotated[
        bool,
        typer.Option(help="Show every second one what is popular; without it, experiments decide."),
    ] = True,
    run: Annotated[
        str, typer.Option(help="Begins every shopper's id; another name, other people.")
    ] = "sim",
    api_url: Annotated[str | None, typer.Option(help="Where the API answers.")] = None,
    steered: Annotated[
        bool,
        typer.Option(
            help='Read {"hot": […], "drift": …, "held": …} from standard input, a line each, and print the '
            "figures after each round; the end of the input ends it."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
) -> None:
    """Let shoppers with hidden tastes shop by the API, and measure what recommending is worth in clicks."""
    import asyncio
    import json

    from afterclick.settings import Settings
    from ingest.simulation import Simulation, SimulationConfig, summary

    plan = SimulationConfig(
        shoppers=shoppers,
        visits=visits,
        n=n,
        pause_s=pause,
        drift=drift,
        hot=tuple(hot or ()),
        seed=seed,
        control=control,
        run=run,
    )
    ui = Settings().ui
    simulation = Simulation(api_url or ui.api_url, plan, ui.api_key)
    if steered:
        asyncio.run(_controlled(simulation))
        return
    participants = asyncio.run(_shop(simulation, plan.visits, quiet=as_json))
    figures = summary(participants, seed)
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        _print(figures)


async def _controlled(simulation: Simulation) -> None:
    """Shop until the input ends, doing what its lines say and printing the figures of each round."""
    import asyncio
    import json
    import sys

    from pydantic import ValidationError

    from ingest.simulation import ControlMessage, progress_summary

    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def read_control() -> None:
        while line := await reader.readline():
            try:
                simulation.apply(ControlMessage.model_validate_json(line))
            except ValidationError as error:
                typer.echo(f"not a control message: {error.errors()[0]['msg']}", err=True)

    def report(done: int) -> None:
        typer.echo(json.dumps({"round": done, **progress_summary(simulation.participants)}))

    shopping = asyncio.create_task(simulation.run(report))
    reading = asyncio.create_task(read_control())
    await asyncio.wait({shopping, reading}, return_when=asyncio.FIRST_COMPLETED)
    for task in (shopping, reading):
        task.cancel()
    outcome, *_ = await asyncio.gather(shopping, reading, return_exceptions=True)
    if isinstance(outcome, Exception):
        raise outcome


async def _shop(simulation: Simulation, visits: int, *, quiet: bool) -> Any:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("rounds of visits"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task("visits", total=visits)
        return await simulation.run(lambda done: progress.update(task, completed=done))


def _print(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("shown", "items", "clicks", "CTR", "expected CTR", "purchases")
    for arm, row in figures["arms"].items():
        rates = (f"{row['ctr']:.2%}", f"{row['expected_ctr']:.2%}")
        table.add_row(
            arm, f"{row['shown']:,}", f"{row['clicks']:,}", *rates, f"{row['purchases']:,}"
        )
    console = Console()
    console.print(table)
    low, high = figures["lift_95"]
    if not figures["arms"]["popular"]["shown"]:
        return
    console.print(
        f"lift of recommending over popularity: {figures['lift']:+.1%} (95 % of {low:+.1%} to {high:+.1%}, "
        f"{figures['shoppers']} shoppers, {figures['feedback']:,} events sent)"
    )

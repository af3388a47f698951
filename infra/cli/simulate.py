"""`afterclick simulate`: simulated users with hidden tastes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli.output import AsJson, emit, progress_bar, table

if TYPE_CHECKING:
    from rich.table import Table

    from ingest.simulation import Simulation

app = typer.Typer(help="simulate", no_args_is_help=True)


@app.command()
def simulate(
    shoppers: Annotated[int, typer.Option(min=2, help="Number of users.")] = 100,
    visits: Annotated[int, typer.Option(min=1, help="Lists per user.")] = 10,
    n: Annotated[int, typer.Option("--n", min=1, max=100, help="Items in a list.")] = 10,
    pause: Annotated[float, typer.Option(min=0, help="Minimum seconds between two rounds.")] = 1.0,
    drift: Annotated[
        float,
        typer.Option(min=0, max=1, help="Probability of a taste change per visit."),
    ] = 0.0,
    hot: Annotated[
        list[str] | None, typer.Option(help="An item that all users like; repeat.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed creates the same users.")] = 7,
    control: Annotated[
        bool,
        typer.Option(
            help="Show decayed popularity to a part of the users; else experiments decide."
        ),
    ] = True,
    content: Annotated[
        bool, typer.Option(help="Show lists by content alone to a part of the users.")
    ] = False,
    latent: Annotated[
        float,
        typer.Option(min=0, help="Size of the part of taste that no category shows; 0: none."),
    ] = 2.0,
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="Fit that part to the reviews of this dataset; default: as in a generated shop.",
            show_default=False,
        ),
    ] = None,
    run: Annotated[str, typer.Option(help="Prefix of the user ids.")] = "sim",
    api_url: Annotated[str | None, typer.Option(help="URL of the API.")] = None,
    steered: Annotated[
        bool,
        typer.Option(
            help='Read lines {"hot": […], "drift": …, "held": …} from standard input and print the '
            "figures of each round, until the input ends."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Simulate users with hidden tastes against the API, and measure the lift in clicks."""
    import asyncio

    from afterclick.settings import Settings
    from ingest.datasets import open_dataset
    from ingest.simulation import Simulation, SimulationConfig, fitted_factors, summary

    plan = SimulationConfig(
        shoppers=shoppers,
        visits=visits,
        n=n,
        pause_s=pause,
        drift=drift,
        hot=tuple(hot or ()),
        seed=seed,
        latent=latent,
        control=control,
        content=content,
        run=run,
    )
    ui = Settings().ui
    factors = fitted_factors(open_dataset(dataset)) if dataset else None
    simulation = Simulation(api_url or ui.api_url, plan, ui.api_key, factors)
    if steered:
        asyncio.run(_controlled(simulation))
        return
    participants = asyncio.run(_shop(simulation, plan.visits, quiet=as_json))
    figures = summary(participants, seed)
    emit(figures, as_json, lambda: _table(figures))


async def _controlled(simulation: Simulation) -> None:
    """Run until the input ends; apply its control messages, print the figures of each round."""
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
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn

    with progress_bar(MofNCompleteColumn(), TimeElapsedColumn(), hidden=quiet) as progress:
        task = progress.add_task("rounds of visits", total=visits)
        return await simulation.run(lambda done: progress.update(task, completed=done))


def _table(figures: dict[str, Any]) -> Table:
    lines = [f"{figures['feedback']:,} events sent"]
    for base, lift in (("decayed popularity", "lift"), ("content alone", "content_lift")):
        if lift in figures:
            low, high = figures[f"{lift}_95"]
            interval = f"(95 %: {low:+.1%} to {high:+.1%})"
            lines.append(f"lift of recommendations over {base}: {figures[lift]:+.1%} {interval}")
    measured = figures["arms"]["popular"]["shown"]
    headings = ("shown", "items", "clicks", "CTR", "expected CTR", "purchases")
    rows = (
        (
            arm,
            f"{row['shown']:,}",
            f"{row['clicks']:,}",
            f"{row['ctr']:.2%}",
            f"{row['expected_ctr']:.2%}",
            f"{row['purchases']:,}",
        )
        for arm, row in figures["arms"].items()
    )
    return table(headings, rows, "\n".join(lines) if measured else None)

"""`afterclick simulate`: shoppers with hidden tastes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ingest.shoppers import Plan

app = typer.Typer(help="simulate", no_args_is_help=True)


@app.command()
def simulate(
    shoppers: Annotated[int, typer.Option(min=2, help="How many.")] = 100,
    visits: Annotated[int, typer.Option(min=1, help="Lists that each looks at.")] = 10,
    n: Annotated[int, typer.Option("--n", min=1, max=100, help="Items in a list.")] = 10,
    pause: Annotated[float, typer.Option(min=0, help="Least seconds between two rounds of visits.")] = 1.0,
    drift: Annotated[
        float, typer.Option(min=0, max=1, help="Probability that a taste changes between two visits.")
    ] = 0.0,
    hot: Annotated[
        list[str] | None, typer.Option(help="An item that everybody likes now; repeat for more.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed: the same people and tastes.")] = 7,
    control: Annotated[
        bool,
        typer.Option(help="Show every second one what is popular; without it, experiments decide."),
    ] = True,
    run: Annotated[str, typer.Option(help="Begins every shopper's id; another name, other people.")] = "sim",
    api_url: Annotated[str | None, typer.Option(help="Where the API answers.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object as the last line.")] = False,
) -> None:
    """Let shoppers with hidden tastes shop by the API, and measure what recommending is worth in clicks."""
    import asyncio
    import json

    from afterclick.settings import Settings
    from ingest.shoppers import Plan, summary

    plan = Plan(
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
    customers = asyncio.run(_shop(api_url or Settings().ui.api_url, plan, quiet=as_json))
    figures = summary(customers, seed)
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        _print(figures)


async def _shop(url: str, plan: Plan, *, quiet: bool) -> Any:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ingest.shoppers import Mall

    columns = (TextColumn("rounds of visits"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task("visits", total=plan.visits)
        return await Mall(url, plan).run(lambda done: progress.update(task, completed=done))


def _print(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("shown", "items", "clicks", "CTR", "expected CTR", "purchases")
    for arm, row in figures["arms"].items():
        rates = (f"{row['ctr']:.2%}", f"{row['expected_ctr']:.2%}")
        table.add_row(arm, f"{row['shown']:,}", f"{row['clicks']:,}", *rates, f"{row['purchases']:,}")
    console = Console()
    console.print(table)
    low, high = figures["lift_95"]
    if not figures["arms"]["popular"]["shown"]:
        return
    console.print(
        f"lift of recommending over popularity: {figures['lift']:+.1%} (95 % of {low:+.1%} to {high:+.1%}, "
        f"{figures['shoppers']} shoppers, {figures['feedback']:,} events sent)"
    )

"""`afterclick reconcile`: prove the state against the log."""

from __future__ import annotations

import typer

app = typer.Typer(help="Prove the state against the log.", no_args_is_help=True)


@app.command()
def reconcile(
    wait: float = typer.Option(0.0, "--wait", help="Seconds to let the stream catch up first."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Recount the Kafka log and compare Redis with it. Exit 1 if anything differs."""
    from dataclasses import asdict

    import orjson
    from rich.console import Console

    from afterclick.settings import Settings
    from streaming.proof.reconcile import reconcile as compare

    report = compare(Settings(), wait)
    if as_json:
        typer.echo(orjson.dumps(asdict(report), option=orjson.OPT_NON_STR_KEYS))
    else:
        console = Console(highlight=False)
        console.print(
            f"{report.events:,} records up to the positions ({report.behind:,} behind the end), "
            f"{report.duplicates:,} duplicates, {report.poison:,} poison, {report.users:,} users, "
            f"{report.items:,} items, {report.seconds:.1f} s"
        )
        console.print(
            f"counted   state {report.counted_in_state:,}   log {report.counted_in_log:,}"
        )
        console.print(
            f"uniques   state {report.uniques_in_state:,}   log {report.uniques_in_log:,}"
        )
        for one in report.examples:
            console.print(
                f"[red]{one.where}[/red]: state {one.state[:200]}, log {one.log[:200]}", markup=True
            )
        console.print(
            f"[bold]{report.differences:,} differences[/bold] {dict(report.by_kind) or ''}"
        )
    if report.differences:
        raise typer.Exit(1)


@app.command()
def rebuild(as_json: bool = typer.Option(False, "--json", help="Print one JSON object.")) -> None:
    """Make the state anew from the Parquet log. Stop the stream first; it goes on from there."""
    from dataclasses import asdict

    import orjson

    from afterclick.settings import Settings
    from streaming.proof.rebuild import rebuild as make_anew

    found = make_anew(Settings())
    typer.echo(
        orjson.dumps(asdict(found)) if as_json else f"{found.events:,} events, at {found.positions}"
    )

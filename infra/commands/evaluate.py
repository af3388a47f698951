"""`afterclick evaluate`: every model on a time split, by full ranking."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def evaluate(
    dataset: Annotated[
        Path | None,
        typer.Option(
            envvar="DATASET", help="A dataset folder or file; else what the ETL made of the log."
        ),
    ] = None,
    cut: Annotated[
        str | None,
        typer.Option(
            help="First test day, yyyy-mm-dd. Default: the last first of a month before 5 % of the rows."
        ),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option(help="The day after the last one; nothing from it on is looked at."),
    ] = None,
    users: Annotated[int, typer.Option(min=10, help="Most questions of one protocol.")] = 5000,
    engine: Annotated[str, typer.Option(help="ALS by `implicit` or by `spark`.")] = "implicit",
    report: Annotated[
        Path | None, typer.Option(help="Also write a Markdown report with pictures here.")
    ] = None,
    record: Annotated[
        bool,
        typer.Option("--record", help="Also keep it in MLflow: figures, settings, the report."),
    ] = False,
    brief: Annotated[
        bool, typer.Option("--brief", help="Also the blend as it is made while requests queue up.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line.")
    ] = False,
) -> None:
    """Compare every model on interactions that none of them has seen: a global time split, full ranking."""
    from afterclick.settings import Settings
    from training.evaluation.command import Request, run

    run(Settings(), Request(dataset, cut, end, users, engine, report, record, brief, json))

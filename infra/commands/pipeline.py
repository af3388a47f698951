"""`afterclick pipeline`: from the log to a served model, a step at a time."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.commands.train import as_json, say, steps_of

app = typer.Typer(help="From the log to a served model, a step at a time.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


@app.command("etl")
def etl(
    full: Annotated[
        bool, typer.Option("--full", help="Read all of the log, not only new files.")
    ] = False,
    json: Json = False,
) -> None:
    """Turn the Parquet log into tables: duplicates out, numeric ids, the k-core, popularity.

    Only files are read that came since the last time; all, where one of the others has changed.
    """
    with steps_of("pipeline etl") as steps:
        report = steps.etl(full=full)
    if json:
        as_json(report.model_dump())


@app.command("train")
def train(json: Json = False) -> None:
    """Fit ALS, neighbours, content and the ranker on the newest tables."""
    with steps_of("pipeline train") as steps:
        facts = steps.train()
    if json:
        as_json(facts.model_dump())


@app.command("eval")
def evaluate(json: Json = False) -> None:
    """Compare the newest candidate with the champion on the newest interactions."""
    with steps_of("pipeline eval") as steps:
        evaluation = steps.evaluate()
    if not evaluation.passed:
        say(f"refused: {evaluation.reason}")
    if json:
        as_json(evaluation.model_dump())


@app.command("deploy")
def deploy(json: Json = False) -> None:
    """Publish the newest candidate, if it passed. Exit code 6 if it is refused."""
    with steps_of("pipeline deploy") as steps:
        published = steps.deploy()
    if json:
        as_json(published.model_dump())


@app.command("all")
def everything(json: Json = False) -> None:
    """All steps in a row: the same as `afterclick train`."""
    with steps_of("pipeline all") as steps:
        report, evaluation, published = steps.run_all()
    if json:
        as_json(
            {
                **published.model_dump(),
                "etl": report.model_dump(),
                "evaluation": evaluation.model_dump(),
            }
        )

"""`afterclick benchmark`: any model on a folder of train, valid and test rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.commands.train import as_json, say

app = typer.Typer(help="Measure a model on a published split.", no_args_is_help=True)


@app.command()
def benchmark(
    split: Annotated[
        Path, typer.Option(help="Folder with train.csv, test.csv, perhaps valid.csv.")
    ],
    model: Annotated[str, typer.Option(help="popularity, item_item, als, ncf or two_tower.")],
    trials: Annotated[
        int, typer.Option(min=0, help="Most settings to try on valid; 0 for none.")
    ] = 40,
    seeds: Annotated[int, typer.Option(min=1, help="Fits to take the mean of.")] = 1,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 42,
    protocol: Annotated[
        str,
        typer.Option(help="`full` ranks every item, `ncf` each test item among given negatives."),
    ] = "full",
    negatives: Annotated[
        Path | None,
        typer.Option(help="For `ncf`: lines (user,item)<tab>negative…, or CSV user_id,item_id."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Time for the search.")] = 360.0,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line.")
    ] = False,
) -> None:
    """Fit a model, tune it on the validation rows alone, rank every item for every user, and measure.

    The files are CSV (or .csv.gz) with the header user_id,item_id[,timestamp]. Without valid.csv a tenth of
    each user's training rows, the newest where there are timestamps, stands in for it.
    """
    from afterclick.errors import BadInput
    from training.benchmark import registry
    from training.benchmark.run import Request, run

    if protocol not in ("full", "ncf"):
        raise BadInput(f"--protocol {protocol!r}: full or ncf")
    if (protocol == "ncf") != (negatives is not None):
        raise BadInput("--protocol ncf and --negatives FILE belong together")
    registry.check(model)
    answer = run(Request(split, model, trials, seeds, seed, seconds, negatives), say)
    if json:
        as_json(answer)
        return
    for name in (
        "ndcg@20",
        "recall@20",
        "hr@20",
        "f1@20",
        "ndcg@10",
        "recall@10",
        "hr@10",
        "f1@10",
    ):
        typer.echo(f"{name:<10} {answer[name]:.4f}")
    typer.echo(
        f"fit {answer['fit_seconds']} s, search {answer['tune_seconds']} s, {answer['peak_mb']} MB"
    )

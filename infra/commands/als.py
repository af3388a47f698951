"""`afterclick als`: search for its settings, and compare its engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from infra.commands.train import as_json, say

if TYPE_CHECKING:
    from afterclick.settings import Settings
    from training.als_quality import Exam

app = typer.Typer(help="Search for ALS's settings, and compare its engines.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Dataset = Annotated[
    Path | None,
    typer.Option(
        envvar="DATASET", help="A dataset folder or file; else what the ETL made of the log."
    ),
]
Cut = Annotated[str | None, typer.Option(help="First day that is asked about, yyyy-mm-dd.")]
End = Annotated[
    str | None, typer.Option(help="The day after the last one; nothing from it on is looked at.")
]
Users = Annotated[int, typer.Option(min=10, help="Most questions of one protocol.")]
_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
)


@app.command("search")
def search(
    dataset: Dataset = None,
    cut: Cut = None,
    end: End = None,
    users: Users = 1000,
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, earlier calls included.")] = 20,
    seconds: Annotated[float, typer.Option(min=1, help="No trial starts after it.")] = 900.0,
    name: Annotated[str, typer.Option(help="The study; the same name goes on.")] = "als",
    json: Json = False,
) -> None:
    """Search rank, reg and alpha of ALS by Optuna on a time window; every trial is a nested MLflow run.

    Stop it whenever you like: the same call goes on where it was. --end keeps a later test period unseen.
    """
    from training.als_search import Search, run

    settings, exam = _exam(dataset, cut, end, users)
    with Progress(*_COLUMNS, console=Console(stderr=True)) as bar:
        task = bar.add_task("trials", total=trials)

        def tell(done: int, line: str) -> None:
            bar.console.print(line, highlight=False)
            bar.update(task, completed=done)

        answer = run(settings, exam, Search(name, trials, seconds), tell)
    best = answer["best"]
    say(
        f"best of {answer['trials']} ({answer['pruned']} pruned): {best['params']}, {best['metrics']}"
    )
    if json:
        as_json(answer)


@app.command("engines")
def engines(
    dataset: Dataset = None,
    cut: Cut = None,
    end: End = None,
    users: Users = 2000,
    json: Json = False,
) -> None:
    """Fit ALS by Spark and by `implicit` with the same settings: seconds, NDCG, hit rate."""
    from training.als import AlsConfig
    from training.als_engines import compare
    from training.workspace import spark_session

    settings, exam = _exam(dataset, cut, end, users)
    knobs = settings.training
    config = AlsConfig(knobs.rank, knobs.reg, knobs.alpha, knobs.iterations, knobs.seed)
    with spark_session(settings) as session:
        answer = compare(session, exam, config, say)
    if json:
        as_json(answer)


def _exam(
    dataset: Path | None, cut: str | None, end: str | None, users: int
) -> tuple[Settings, Exam]:
    from afterclick.settings import Settings
    from training.als_quality import Exam
    from training.evaluation.command import split_of

    settings = Settings()
    split, _ = split_of(settings, dataset, cut, end)
    return settings, Exam.of(split, users, settings.training.seed)

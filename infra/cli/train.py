"""`afterclick train`, `retrain`, `pipeline` and `models`: from the log to a served model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli.output import AsJson, emit, progress, stop_signals, table

if TYPE_CHECKING:
    from rich.table import Table

    from afterclick.settings import Settings
    from training.mlflow_registry import MlflowRegistry, RegisteredModel
    from training.pipeline import Pipeline

app = typer.Typer()
pipeline_app = typer.Typer(
    help="From the log to a served model, step by step.", no_args_is_help=True
)


@app.command()
def train(as_json: AsJson = False) -> None:
    """Train on the log and publish the model, unless the gate refuses it.

    If no model is served yet, a model without its ranker is published first.
    """
    start = time.monotonic()
    answer = _run_steps("train")
    _emit(answer | {"seconds": round(time.monotonic() - start, 1)}, as_json)


@app.command()
def retrain(
    every: Annotated[float, typer.Option(min=1, help="Minutes between trainings.")] = 360.0,
    events: Annotated[
        int, typer.Option(min=1, help="New events that start a training earlier.")
    ] = 50_000,
) -> None:
    """Train on a schedule and after new events, until SIGTERM.

    One training at a time, at low priority; its state is in retrain.json in the home folder.
    """
    import structlog

    from afterclick.settings import Settings
    from training.schedule import Retrain

    structlog.get_logger().info("scheduled training", every_minutes=every, or_after_events=events)
    with stop_signals() as stop:
        Retrain(Settings(), every * 60, events).run(stop)


@pipeline_app.command("etl")
def run_etl(
    full: Annotated[
        bool, typer.Option("--full", help="Read the whole log, not only new files.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Turn the event archive into tables: deduplicated, with numeric ids, the k-core, popularity.

    Reads only new files; all files if one of the others has changed.
    """
    with steps_of("pipeline etl") as steps:
        report = steps.etl(full=full)
    _emit(report.model_dump(), as_json)


@pipeline_app.command("train")
def run_train(as_json: AsJson = False) -> None:
    """Fit ALS, neighbours, content and the ranker on the newest tables."""
    with steps_of("pipeline train") as steps:
        metadata = steps.train()
    _emit(metadata.model_dump(), as_json)


@pipeline_app.command("eval")
def run_evaluation(as_json: AsJson = False) -> None:
    """Compare the newest challenger with champion, anchor and trends on the newest interactions."""
    with steps_of("pipeline eval") as steps:
        evaluation = steps.evaluate()
    _emit(evaluation.model_dump(), as_json)


@pipeline_app.command("deploy")
def run_deploy(as_json: AsJson = False) -> None:
    """Publish the newest challenger if it passed the gate. Exit code 6 if it was refused."""
    with steps_of("pipeline deploy") as steps:
        published = steps.deploy()
    _emit(published.model_dump(), as_json)


@pipeline_app.command("all")
def run_all(as_json: AsJson = False) -> None:
    """Run all steps: the same as `afterclick train`."""
    _emit(_run_steps("pipeline all"), as_json)


def _run_steps(command: str) -> dict[str, Any]:
    with steps_of(command) as steps:
        report, evaluation, published = steps.run_all()
    details = {"etl": report.model_dump(), "evaluation": evaluation.model_dump()}
    return {**published.model_dump(), **details}


@contextmanager
def steps_of(command: str) -> Iterator[Pipeline]:
    """The pipeline of this installation, while no other training runs. Raises AlreadyRunning.

    Writes its progress to retrain.json and to standard error.
    """
    import os
    from functools import partial

    from afterclick.settings import Settings
    from training.pipeline import Pipeline
    from training.publish import champion
    from training.workspace import report_progress, training_lock

    settings = Settings()
    lower_priority = partial(os.nice, 5)
    if champion(settings.kafka) is not None:  # the API goes first; the first model is urgent
        lower_priority()
    start = time.monotonic()
    owner = f"`afterclick {command}`"
    with training_lock(settings.home, owner), report_progress(settings.home) as write:

        def report(message: str) -> None:
            write(message)
            progress(message, time.monotonic() - start)

        yield Pipeline(settings, report, lower_priority)


def _emit(value: dict[str, Any], as_json: bool) -> None:
    """Progress has been printed: without --json there is nothing to add."""
    if as_json:
        emit(value, as_json)


models_app = typer.Typer(
    help="Registered models: list, compare, promote, roll back.", no_args_is_help=True
)
Version = Annotated[str, typer.Argument(help="A version, or champion, previous or challenger.")]


@models_app.command("ls")
def listing(as_json: AsJson = False) -> None:
    """List the registered models, newest first, and which one is served.

    With --json also the gate's decisions on the stored challengers, including refused ones.
    """
    settings, registry = _open()
    served = _served(settings)
    entries = [_row(entry, served) for entry in registry.models()]
    answer = {"served": served, "models": entries, "decisions": _decisions(settings)}
    emit(answer, as_json, lambda: _table(entries))


@models_app.command("show")
def show(version: Version, as_json: AsJson = False) -> None:
    """Show the manifest of a model: files, parameters, metrics, lineage."""
    import orjson

    from afterclick.artifact import read_manifest, verify

    settings, registry = _open()
    entry = registry.get(version)
    manifest = read_manifest(entry.folder, entry.tags.get("manifest"))
    verify(entry.folder, manifest)
    answer = {**_row(entry, _served(settings)), "manifest": manifest.model_dump()}
    emit(answer, as_json, lambda: orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode())


@models_app.command("diff")
def diff(first: Version, second: Version, as_json: AsJson = False) -> None:
    """Compare the settings, metrics, origin and items of two models."""
    from training.challenger import differences

    _, registry = _open()
    answer = differences(registry.get(first).folder, registry.get(second).folder)
    emit(answer, as_json, lambda: _differences(answer))


@models_app.command("promote")
def promote(version: Version, as_json: AsJson = False) -> None:
    """Serve this model, regardless of its metrics."""
    settings, registry = _open()
    _promote(settings, registry, registry.get(version), as_json)


@models_app.command("rollback")
def rollback(as_json: AsJson = False) -> None:
    """Serve the previous model."""
    settings, registry = _open()
    _promote(settings, registry, registry.get("previous"), as_json)


def _open() -> tuple[Settings, MlflowRegistry]:
    from afterclick.settings import Settings
    from training.mlflow_registry import MlflowRegistry

    settings = Settings()
    return settings, MlflowRegistry(settings)


def _served(settings: Settings) -> str | None:
    from training import publish

    champion = publish.champion(settings.kafka)
    return champion.version if champion else None


def _promote(
    settings: Settings, registry: MlflowRegistry, entry: RegisteredModel, as_json: bool
) -> None:
    from training import publish

    published = publish.announce(settings.kafka, entry.folder, store=settings.training.store)
    registry.sync_aliases(published.version)
    emit(published, as_json, f"{published.version} is the champion")


def _table(rows: list[dict[str, Any]]) -> Table:
    return table(
        ("version", "served", "aliases", "trained on", "ndcg@10 live"),
        (
            (
                row["version"],
                "yes" if row["served"] else "",
                ", ".join(row["aliases"]),
                f"{row['rows']} interactions",
                _metric(row["metrics"].get("live.ndcg@10"), 4),
            )
            for row in rows
        ),
    )


def _differences(answer: dict[str, Any]) -> Table:
    items = answer["items"]
    settings = answer["parameters"] | answer["lineage"]
    rows = [
        *((name, *pair) for name, pair in settings.items()),
        *(
            (name, *(_metric(values[side], 5) for side in ("first", "second")))
            for name, values in answer["metrics"].items()
        ),
        ("items", items["both"] + items["only_first"], items["both"] + items["only_second"]),
    ]
    return table(("", *answer["versions"]), rows)


def _metric(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _row(entry: RegisteredModel, served: str | None) -> dict[str, Any]:
    from afterclick.artifact import read_manifest
    from afterclick.errors import BadArtifact

    try:
        metrics = read_manifest(entry.folder).metrics
    except BadArtifact:
        metrics = {}
    return {
        "version": entry.version,
        "served": entry.version == served,
        "aliases": entry.aliases,
        "rows": entry.tags.get("rows", ""),
        "metrics": metrics,
        "folder": str(entry.folder),
        "run": entry.run_id,
    }


def _decisions(settings: Settings) -> list[dict[str, Any]]:
    """The gate's decision on each evaluated challenger, newest first."""
    from training.challenger import Evaluation
    from training.workspace import MissingStep

    decisions = []
    for folder in sorted((settings.home / "challengers").glob("*/"), reverse=True):
        try:
            decisions.append({"version": folder.name, **Evaluation.read(folder).model_dump()})
        except MissingStep:
            continue
    return decisions

"""`afterclick models`: registered models, the served one, promotion and rollback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli.output import AsJson, emit, table

if TYPE_CHECKING:
    from rich.table import Table

    from afterclick.settings import Settings
    from training.mlflow_registry import MlflowRegistry, RegisteredModel

app = typer.Typer(
    help="Registered models: list, compare, promote, roll back.", no_args_is_help=True
)
Version = Annotated[str, typer.Argument(help="A version, or champion, previous or challenger.")]


@app.command("ls")
def listing(as_json: AsJson = False) -> None:
    """List the registered models, newest first, and which one is served.

    With --json also the gate's decisions on the stored challengers, including refused ones.
    """
    settings, registry = _open()
    served = _served(settings)
    entries = [_row(entry, served) for entry in registry.models()]
    answer = {"served": served, "models": entries, "decisions": _decisions(settings)}
    emit(answer, as_json, lambda: _table(entries))


@app.command("show")
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


@app.command("diff")
def diff(first: Version, second: Version, as_json: AsJson = False) -> None:
    """Compare the settings, metrics, origin and items of two models."""
    from training.challenger import differences

    _, registry = _open()
    answer = differences(registry.get(first).folder, registry.get(second).folder)
    emit(answer, as_json, lambda: _differences(answer))


@app.command("promote")
def promote(version: Version, as_json: AsJson = False) -> None:
    """Serve this model, regardless of its metrics."""
    settings, registry = _open()
    _promote(settings, registry, registry.get(version), as_json)


@app.command("rollback")
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

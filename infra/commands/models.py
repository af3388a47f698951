"""`afterclick models`: what was trained, what is served, and going back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.commands.train import as_json, say

if TYPE_CHECKING:
    from afterclick.settings import Settings
    from training.mlflow_registry import MlflowRegistry, RegisteredModel

app = typer.Typer(help="What was trained, what is served, and going back.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Version = Annotated[
    str, typer.Argument(help="A version, or one of champion, previous, challenger.")
]


@app.command("ls")
def listing(json: Json = False) -> None:
    """List the registered models, newest first, and which one is served.

    With --json also the gate's decisions on every candidate that is kept, the refused ones too.
    """
    settings, registry = _open()
    served = _served(settings)
    entries = [_row(entry, served) for entry in registry.models()]
    if json:
        as_json({"served": served, "models": entries, "decisions": _decisions(settings)})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("version", "served", "aliases", "trained on", "ndcg@10 live")
    for row in entries:
        figure = row["metrics"].get("live.ndcg@10")
        table.add_row(
            row["version"],
            "yes" if row["served"] else "",
            ", ".join(row["aliases"]),
            f"{row['rows']} interactions",
            "" if figure is None else f"{figure:.4f}",
        )
    Console().print(table)


@app.command("show")
def show(version: Version, json: Json = False) -> None:
    """Show the manifest of a model: files, parameters, metrics, lineage."""
    from afterclick.artifact import read_manifest, verify

    settings, registry = _open()
    entry = registry.get(version)
    manifest = read_manifest(entry.folder, entry.tags.get("manifest"))
    verify(entry.folder, manifest)
    answer = {**_row(entry, _served(settings)), "manifest": manifest.model_dump()}
    if json:
        as_json(answer)
        return
    from rich.console import Console

    Console().print_json(data=answer)


@app.command("diff")
def diff(first: Version, second: Version, json: Json = False) -> None:
    """Show what two models differ in: settings, metrics, origin, items."""
    from training.challenger import differences

    _, registry = _open()
    answer = differences(registry.get(first).folder, registry.get(second).folder)
    if json:
        as_json(answer)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("", *answer["versions"])
    for name, pair in (answer["parameters"] | answer["lineage"]).items():
        table.add_row(name, *("" if value is None else str(value) for value in pair))
    for name, values in answer["metrics"].items():
        shown = [
            ("" if values[side] is None else f"{values[side]:.5f}") for side in ("first", "second")
        ]
        table.add_row(name, *shown)
    items = answer["items"]
    table.add_row(
        "items", str(items["both"] + items["only_first"]), str(items["both"] + items["only_second"])
    )
    Console().print(table)


@app.command("promote")
def promote(version: Version, json: Json = False) -> None:
    """Serve this model from now on, whatever its figures are."""
    settings, registry = _open()
    _promote(settings, registry, registry.get(version), json)


@app.command("rollback")
def rollback(json: Json = False) -> None:
    """Serve the model that was served before."""
    settings, registry = _open()
    _promote(settings, registry, registry.get("previous"), json)


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
    settings: Settings, registry: MlflowRegistry, entry: RegisteredModel, json: bool
) -> None:
    from training import publish

    published = publish.announce(settings.kafka, entry.folder, store=settings.training.store)
    registry.sync_aliases(published.version)
    say(f"{published.version} is the champion")
    if json:
        as_json(published.model_dump())


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
    """What the gate decided on each candidate that was evaluated, newest first."""
    from training.challenger import Evaluation
    from training.workspace import MissingStep

    found = []
    for folder in sorted((settings.home / "challengers").glob("*/"), reverse=True):
        try:
            found.append({"version": folder.name, **Evaluation.read(folder).model_dump()})
        except MissingStep:
            continue
    return found

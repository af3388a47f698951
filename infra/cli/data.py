"""`afterclick data`: download, generate and inspect datasets."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli.output import AsJson, emit

if TYPE_CHECKING:
    from ingest.datasets import ResolvedDataset
    from ingest.sorting import DatasetProfile

app = typer.Typer(help="Datasets: download, generate, inspect.", no_args_is_help=True)

DatasetArgument = Annotated[
    Path | None,
    typer.Argument(
        envvar="DATASET",
        help="Folder or reviews file; else data/raw, a download, or a generated shop.",
        show_default=False,
    ),
]


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="Which official dataset.")] = "electronics",
    out: Annotated[Path | None, typer.Option(help="Folder; data/raw/NAME by default.")] = None,
    ratings_only: Annotated[
        bool, typer.Option(help="Skip the metadata (titles, categories).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Download an official dataset; an interrupted download continues where it stopped."""
    from ingest.datasets import RAW
    from ingest.download import download, official_urls

    ratings, metadata = official_urls(name)
    folder = out or RAW / name
    with DownloadBar() as show:
        for url in (ratings,) if ratings_only else (ratings, metadata):
            download(url, folder, on_progress=show)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    lines = "\n".join(f"{folder / file}  {size:,} bytes" for file, size in sizes.items())
    emit({"folder": str(folder), "bytes": sizes}, as_json, lines)


@app.command()
def make(
    out: Annotated[
        Path, typer.Option(help="Folder to write reviews.csv and items.csv into.")
    ] = Path("data/raw/shop"),
    users: Annotated[int, typer.Option(help="How many users.")] = 2_000,
    items: Annotated[int, typer.Option(help="How many items.")] = 800,
    events: Annotated[int, typer.Option(help="How many reviews.")] = 40_000,
    days: Annotated[int, typer.Option(help="Days from the first review to the last.")] = 540,
    seed: Annotated[int, typer.Option(help="The same seed generates the same shop.")] = 7,
    end: Annotated[
        datetime | None,
        typer.Option(help="When the last review is written (UTC).", show_default="2025-06-30"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate a realistic small shop: titles, categories, a long tail, tastes that drift."""
    from datetime import UTC

    from ingest.generate import ShopConfig, generate_shop

    config = ShopConfig(users=users, items=items, events=events, days=days, seed=seed)
    if end is not None:
        config = ShopConfig(users, items, events, days, end.replace(tzinfo=end.tzinfo or UTC), seed)
    summary = generate_shop(out, config)
    line = f"{summary.events:,} reviews by {summary.users:,} users of {summary.items:,} items"
    answer = {"folder": str(out), **asdict(summary)}
    emit(answer, as_json, f"{out}: {line} (seed {summary.seed})")


@app.command()
def info(dataset: DatasetArgument = None, as_json: AsJson = False) -> None:
    """Show the rows, users, items, time span and bad lines of a dataset."""
    from ingest.sorting import profile

    choice = resolve(dataset, quiet=as_json)
    found = profile(choice.dataset)
    emit({"why": choice.why, **asdict(found)}, as_json, lambda: _lines(found))


def resolve(dataset: Path | None, quiet: bool = False) -> ResolvedDataset:
    """The dataset of a command; prints which and why on standard error."""
    from afterclick.settings import Settings
    from ingest.datasets import resolve_dataset

    named = dataset or (Path(os.environ["DATASET"]) if os.environ.get("DATASET") else None)
    with DownloadBar() as show:
        choice = resolve_dataset(named, Settings().home, on_progress=show)
    if not quiet:
        typer.echo(f"Dataset {choice.dataset.path}: {choice.why}.", err=True)
        for name in choice.dataset.ignored:
            typer.echo(f"  not used: {name}", err=True)
    return choice


def _lines(found: DatasetProfile) -> str:
    rows = {
        "reviews": f"{found.reviews_file}, {found.format}",
        "rows": f"{found.rows:,} = {found.good:,} good + {found.bad_lines:,} bad",
        "users, items": f"{found.users:,}, {found.items:,}",
        "with stars, text": f"{found.rated:,}, {found.with_text:,}",
        "from, to": f"{found.first}, {found.last}",
        "catalogue": "none (items have no titles)",
    }
    if found.items_file:
        counts = f"{found.catalogue_items:,} items, {found.catalogue_titles:,} with a title"
        rows["catalogue"] = f"{found.items_file}: {counts}, {found.catalogue_bad_lines:,} bad lines"
    lines = [f"{name:>16}  {value}" for name, value in rows.items()]
    bad = [f"  line {bad.line}: {bad.why}: {bad.excerpt}" for bad in found.bad_samples]
    return "\n".join(lines + bad)


class DownloadBar:
    """A progress bar on standard error that appears with the first bytes."""

    def __enter__(self) -> DownloadBar:
        from rich.console import Console
        from rich.progress import (
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (TextColumn("{task.description}"), *Progress.get_default_columns()[1:2])
        extra = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, *extra, console=Console(stderr=True))
        self._tasks: dict[str, int] = {}
        return self

    def __call__(self, name: str, done: int, total: int | None) -> None:
        from rich.progress import TaskID

        if not self._tasks:
            self._progress.start()
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(TaskID(self._tasks[name]), completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

"""`afterclick data`: download, generate, split and inspect datasets."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli.output import AsJson, emit, progress_bar

if TYPE_CHECKING:
    from ingest.datasets import ResolvedDataset
    from ingest.formats import ReadOptions
    from ingest.profile import DatasetProfile, Dropped

app = typer.Typer(no_args_is_help=True)

DatasetArgument = Annotated[
    Path | None,
    typer.Argument(
        envvar="DATASET",
        help="Folder or reviews file; else data/raw, a download, or a generated shop.",
        show_default=False,
    ),
]


ColumnsOption = Annotated[
    str | None,
    typer.Option(
        metavar="<field=column,…>",
        help="Columns of a CSV or Parquet file by name, or by number from 1 without a header: "
        "user=…,item=…,time=… and rating, text, action, title, categories, brand, price.",
    ),
]
EncodingOption = Annotated[
    str | None,
    typer.Option(help="Encoding of the files. Default: by the byte order mark, else UTF-8."),
]


@app.callback()
def data() -> None:
    """Datasets: download, generate, split, inspect."""
    # they are no secret, and containers with another user id read them
    os.umask(0o022)


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
    from ingest.generate import ShopConfig, generate_shop

    config = ShopConfig(users=users, items=items, events=events, days=days, seed=seed)
    if end is not None:
        config = replace(config, end=end.replace(tzinfo=end.tzinfo or UTC))
    summary = generate_shop(out, config)
    line = f"{summary.events:,} reviews by {summary.users:,} users of {summary.items:,} items"
    answer = {"folder": str(out), **asdict(summary)}
    emit(answer, as_json, f"{out}: {line} (seed {summary.seed})")


@app.command()
def split(
    to: Annotated[Path, typer.Option(help="Folder to write train, valid and test into.")],
    dataset: DatasetArgument = None,
    min_interactions: Annotated[
        int, typer.Option(min=3, help="Items that a user needs; others are left out.")
    ] = 5,
    as_json: AsJson = False,
) -> None:
    """Split a dataset for `afterclick benchmark`: leave one out by time.

    Of each user the newest item is for the test, the one before it for validation.
    """
    from training.evaluation import leave_one_out

    choice = resolve(dataset, quiet=as_json)
    counts = leave_one_out.write(choice.dataset.path, to, min_interactions)
    shown = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    emit({"folder": str(to), **counts}, as_json, f"{to}: {shown}")


@app.command()
def info(
    dataset: DatasetArgument = None,
    columns: ColumnsOption = None,
    encoding: EncodingOption = None,
    as_json: AsJson = False,
) -> None:
    """Show how a dataset is interpreted and why, its counts, and what is not used."""
    from ingest.profile import profile

    choice = resolve(dataset, read_options(columns, encoding), quiet=as_json)
    facts = profile(choice.dataset)
    emit({"why": choice.why, **asdict(facts)}, as_json, lambda: _lines(facts))


def read_options(columns: str | None, encoding: str | None) -> ReadOptions:
    """What the options of a command state about the files."""
    from ingest.formats import ReadOptions

    return ReadOptions.parse(columns, encoding)


def resolve(
    dataset: Path | None, options: ReadOptions | None = None, *, quiet: bool = False
) -> ResolvedDataset:
    """The dataset of a command; prints which and why on standard error."""
    from afterclick.errors import BadInput
    from afterclick.settings import Settings
    from ingest.datasets import named_dataset, resolve_dataset
    from ingest.formats import DETECTED

    named = dataset or (Path(os.environ["DATASET"]) if os.environ.get("DATASET") else None)
    if options not in (None, DETECTED):
        if named is None:
            raise BadInput("--columns and --encoding are of a dataset: name it")
        choice = named_dataset(named, options)
    else:
        with DownloadBar() as show:
            choice = resolve_dataset(named, Settings().home, on_progress=show)
    if not quiet:
        detected = choice.dataset.reviews_format
        typer.echo(f"Dataset {choice.dataset.path}: {choice.why}.", err=True)
        typer.echo(f"  {detected.format}: {detected.why}", err=True)
        for name in choice.dataset.ignored:
            typer.echo(f"  not used: {name}", err=True)
    return choice


def _lines(profile: DatasetProfile) -> str:
    rows = {
        "reviews": f"{profile.reviews_file}, {profile.format}",
        "columns": ", ".join(f"{f} = {name}" for f, name in profile.interpretation.items()),
        "because": profile.interpreted_by,
        "rows": f"{profile.rows:,} = {profile.good:,} good + {profile.bad_lines:,} bad",
        "duplicates": f"{profile.duplicates:,}",
        "users, items": f"{profile.users:,}, {profile.items:,}",
        "with stars, text": f"{profile.rated:,}, {profile.with_text:,}",
        "from, to": f"{profile.first}, {profile.last}",
        "times": f"{profile.time_unit}, {'' if profile.in_time_order else 'not '}in order",
        "catalogue": "none (items have no titles)",
    }
    if profile.items_file:
        counts = f"{profile.catalogue_items:,} items, {profile.catalogue_titles:,} with a title"
        rows["catalogue"] = (
            f"{profile.items_file}: {counts}, {profile.catalogue_bad_lines:,} bad lines"
        )
        rows["metadata"] = f"{profile.items_with_metadata:.1%} of the items have it"
    lines = [f"{name:>16}  {value}" for name, value in rows.items()]
    lines += [f"  not used: {_reason(found)}" for found in profile.dropped]
    lines += [f"  catalogue, not used: {_reason(found)}" for found in profile.catalogue_dropped]
    bad = [f"  line {bad.line}: {bad.why}: {bad.excerpt}" for bad in profile.bad_samples]
    return "\n".join(lines + bad)


def _reason(dropped: Dropped) -> str:
    numbers = ", ".join(map(str, dropped.lines))
    more = ", …" if dropped.count > len(dropped.lines) else ""
    return f"{dropped.count:,} times {dropped.reason} (lines {numbers}{more})"


class DownloadBar:
    """A progress bar on standard error that appears with the first bytes."""

    def __enter__(self) -> DownloadBar:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._progress = progress_bar(*columns)
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

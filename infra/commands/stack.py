"""`afterclick up`, `down`, `status`, `doctor`, `jars`, `docs`: the machine and the stack on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(help="The whole stack on this machine.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]
Offset = Annotated[int, typer.Option(help="Add this to every port, to run beside another stack.")]


@app.command()
def up(
    replay: Annotated[
        bool, typer.Option("--replay", help="Replay a dataset: history, training, then live.")
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option(
            envvar="DATASET",
            help="Folder or file of reviews; else data/raw, a download, or a generated shop.",
        ),
    ] = None,
    rate: Annotated[float, typer.Option(help="Events a second of the live part.", min=0.1)] = 20.0,
    live_share: Annotated[
        float,
        typer.Option(
            help="The newest part of the data, kept for the live part.", min=0.001, max=0.9
        ),
    ] = 0.1,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Also train by the clock and after new events.")
    ] = False,
    port_offset: Offset = 0,
) -> None:
    """Run Kafka, Valkey, the stream job, the API and the page until Ctrl-C; restart what fails."""
    from afterclick.settings import Settings
    from infra.demo.demo import DemoOptions
    from infra.demo.split import find_split
    from infra.stack.up import UpOptions, require_no_stack
    from infra.stack.up import up as run

    settings = Settings()
    require_no_stack(settings.home)
    split = find_split(settings.home.absolute(), live_share, dataset) if replay else None
    run(settings, UpOptions(port_offset, DemoOptions(split, rate) if split else None, retrain))


@app.command()
def down(
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the end.")] = 20.0,
) -> None:
    """Stop the stack of this home folder, wherever it was started."""
    from afterclick.settings import Settings
    from infra.stack.up import down as stop

    home = Settings().home.absolute()
    pid = stop(home, timeout)
    Console().print(
        f"stopped the stack {pid}" if pid else f"no stack runs in {home}", highlight=False
    )


@app.command()
def status(as_json: AsJson = False) -> None:
    """What runs, where, with how much memory, and how far it has got. Exit code 1 when nothing
    runs.
    """
    from afterclick.settings import Settings
    from infra.stack.status import read_record, table

    record = read_record(Settings().home.absolute())
    if as_json:
        typer.echo(record.model_dump_json())
    else:
        Console().print(table(record))
    raise typer.Exit(0 if record.running else 1)


@app.command()
def doctor(as_json: AsJson = False, port_offset: Offset = 0) -> None:
    """Check Java, packages, jars, ports, memory, disk; say how to mend what is wrong (exit code 1).
    """
    from afterclick.settings import Settings
    from infra.stack.doctor import examine, table
    from infra.stack.services import Topology

    findings = examine(Topology.of(Settings(), port_offset))
    if as_json:
        typer.echo(
            json.dumps(
                {"well": all(f.ok for f in findings), "findings": [f.as_json() for f in findings]}
            )
        )
    else:
        Console().print(table(findings))
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


@app.command()
def jars() -> None:
    """Fetch Kafka and Spark's connector from Maven into the cache, once."""
    from afterclick.settings import Settings
    from infra.embedded.jars import BUNDLES, ensure_jars

    cache = Settings().jars
    for bundle in BUNDLES:
        found = ensure_jars(cache, bundle)
        Console().print(
            f"{bundle.module} {bundle.revision}: {len(found)} jars in {cache / bundle.folder}",
            highlight=False,
        )


@app.command()
def topics() -> None:
    """Create the Kafka topics that are missing. `up` and `ingest` do it by themselves."""
    from afterclick.settings import Settings
    from infra.topics_admin import ensure_topics

    created = ensure_topics(Settings())
    Console().print(f"created: {', '.join(created) or 'none, all were there'}", highlight=False)


@app.command()
def docs(
    folder: Annotated[Path, typer.Argument(help="Where the pages are written.")] = Path("docs"),
) -> None:
    """Write the generated pages: settings.md, commands.md and events.schema.json."""
    from infra.reference import pages

    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)
        Console().print(str(folder / name), highlight=False)

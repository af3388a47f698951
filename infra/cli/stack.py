"""`afterclick up`, `down`, `status`, `serve`, …: the stack, its servers, and the machine."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from infra.cli import control
from infra.cli.output import AsJson, emit

app = typer.Typer()
Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
]

Offset = Annotated[int, typer.Option(help="Add this to every port, to run next to another stack.")]
_IMPORTED = (
    "infra.console.admin_app",
    "infra.demo.demo",
    "infra.demo.histories",
    "infra.stack.up",
    "ingest.items",
    "ingest.replay",
    "serving.app",
    "streaming.job",
    "training.models.ncf",
    "training.models.sequence_training",
    "training.pipeline",
    "ui.web_app",
    # imported where they are first needed
    "implicit.cpu.als",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking",
    "sklearn.decomposition",
)
"""What the processes of a stack import."""


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
    rate: Annotated[
        float, typer.Option(help="Events per second of the live part.", min=0.1)
    ] = 20.0,
    live_share: Annotated[
        float, typer.Option(help="Share of the newest rows for the live part.", min=0.001, max=0.9)
    ] = 0.1,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Also train on a schedule and after new events.")
    ] = False,
    port_offset: Offset = 0,
) -> None:
    """Run Kafka, Valkey, the stream job, the API, the console and the pages until Ctrl-C.

    A service that fails is restarted.
    """
    from afterclick.settings import Settings
    from infra.demo.demo import Demo, DemoOptions, find_split
    from infra.stack.up import UpOptions, require_no_stack
    from infra.stack.up import up as run

    settings = Settings()
    require_no_stack(settings.home)
    split = find_split(settings.home.absolute(), live_share, dataset) if replay else None
    demo = partial(Demo, DemoOptions(split, rate)) if split else None
    run(settings, UpOptions(port_offset, demo, retrain))


@app.command()
def down(
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the end.")] = 20.0,
) -> None:
    """Stop the stack of this home folder, from any shell."""
    from afterclick.settings import Settings
    from infra.stack.up import down as stop

    home = Settings().home.absolute()
    pid = stop(home, timeout)
    typer.echo(f"stopped the stack {pid}" if pid else f"no stack runs in {home}")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show the processes of the stack, their memory, and its progress. Exit code 1 if none runs."""
    from afterclick.settings import Settings
    from infra.stack.status import read_record, table

    record = read_record(Settings().home.absolute())
    emit(record, as_json, lambda: table(record))
    raise typer.Exit(0 if record.running else 1)


@app.command()
def heartbeats(
    process: Annotated[
        str, typer.Argument(help="stream or retrain; else both.", show_default=False)
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show the loops of the stream job and the retrainer. Exit code 1 if one is frozen or none
    runs."""
    from contextlib import closing

    from afterclick.io.heartbeats import read_heartbeats
    from afterclick.io.redis_clients import create_redis
    from afterclick.settings import Settings

    redis = Settings().redis
    with closing(create_redis(redis, socket_timeout=5, socket_connect_timeout=5)) as client:
        loops = read_heartbeats(client, redis.keys)
    found = [loop for loop in loops if not process or loop.name.startswith(f"{process}/")]
    rows = [{"loop": loop.name, "age_s": loop.age_s, "frozen": loop.frozen} for loop in found]
    lines = [f"{loop.name:30} {loop.age_s:6.0f} s{' frozen' * loop.frozen}" for loop in found]
    emit(rows, as_json, "\n".join(lines) or "no process writes heartbeats")
    raise typer.Exit(int(not found or any(loop.frozen for loop in found)))


@app.command()
def doctor(as_json: AsJson = False, port_offset: Offset = 0) -> None:
    """Check Java, packages, jars, ports, memory and disk, and show fixes.

    Exit code 1 if a check fails.
    """
    from afterclick.settings import Settings
    from infra.stack.doctor import examine, table
    from infra.stack.services import Topology

    checks = examine(Topology.of(Settings(), port_offset))
    ok = all(check.ok for check in checks)
    answer = {"well": ok, "findings": [check.as_json() for check in checks]}
    emit(answer, as_json, lambda: table(checks))
    raise typer.Exit(0 if ok else 1)


@app.command()
def jars() -> None:
    """Download Kafka and Spark's connector from Maven into the cache, once."""
    from afterclick.settings import Settings
    from infra.embedded.java import BUNDLES, ensure_jars

    cache = Settings().jars
    for bundle in BUNDLES:
        files = ensure_jars(cache, bundle)
        folder = cache / bundle.folder
        typer.echo(f"{bundle.module} {bundle.revision}: {len(files)} jars in {folder}")


@app.command("compile", hidden=True)
def compile_code() -> None:
    """Import what a stack imports, so that its bytecode is on disk, and compile the kernels."""
    from importlib import import_module

    from afterclick.features import warm_up

    for name in _IMPORTED:
        import_module(name)
    warm_up()


@app.command()
def topics() -> None:
    """Create missing Kafka topics. `up` and `ingest` do it too."""
    from afterclick.settings import Settings
    from infra.embedded.kafka import ensure_topics

    created = ensure_topics(Settings())
    typer.echo(f"created: {', '.join(created) or 'none, all topics exist'}")


@app.command("split-dataset", hidden=True)
def split_dataset(
    home: Path, live_share: float, dataset: Annotated[Path | None, typer.Argument()] = None
) -> None:
    """Print how `up --replay` splits a dataset, in a separate process for its memory."""
    from infra.cli.data import resolve
    from infra.demo.demo import split

    typer.echo(split(resolve(dataset), home, live_share).model_dump_json())


@app.command()
def docs(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of the pages.")] = Path("docs"),
) -> None:
    """Write the generated pages: settings.md, commands.md and events.schema.json."""
    from infra.cli.reference import pages

    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages(context.find_root().command).items():
        (folder / name).write_text(text)
        typer.echo(str(folder / name))


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes that serve the port together.")
    ] = None,
) -> None:
    """Run the API: recommendations, feedback, live pushes. Ctrl-C drains and stops it."""
    # products of a few hundred rows: a second thread costs more than it brings
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from afterclick.settings import Settings
    from serving.app import run

    settings = Settings()
    given = _given(host=host, port=port, workers=workers)
    serving = settings.serving.model_copy(update=given)
    run(settings.model_copy(update={"serving": serving}))


@app.command()
def console(host: Host = None, port: Port = None) -> None:
    """Run the admin console of this home: replay, simulation, training, models, fault injection."""
    from afterclick.settings import Settings
    from infra.console.admin_app import serve as run

    settings = Settings()
    own = settings.console.model_copy(update=_given(host=host, port=port))
    run(settings.model_copy(update={"console": own}))


@app.command("ui")
def ui_command(
    port: Port = None,
    host: Host = None,
    api_url: Annotated[str | None, typer.Option(help="URL of the API.")] = None,
) -> None:
    """Serve the shop and the live dashboard; needs the API (`afterclick serve`)."""
    from afterclick.settings import Settings
    from ui.web_app import serve as run

    run(Settings().ui.model_copy(update=_given(host=host, port=port, api_url=api_url)))


@app.command("api-token")
def api_token(
    user_id: Annotated[str, typer.Argument(help="The user of the token.")],
    hours: Annotated[float, typer.Option(min=0.01, max=720, help="Lifetime.")] = 1.0,
    revoke: Annotated[bool, typer.Option("--revoke", help="End the user's tokens.")] = False,
) -> None:
    """Create a token for one user's browser, signed with AFTERCLICK_SERVING__TOKEN_SECRET.

    With --revoke, the API ends every token of the user instead.
    """
    if revoke:
        with control.api() as client:
            revoked = client.delete(control.path_of("users", user_id) + "/tokens")
        typer.echo(f"tokens of {user_id} from before {revoked['issued_before']} are invalid")
        return
    from afterclick.errors import BadInput
    from afterclick.settings import Settings
    from serving.control.user_tokens import new_token

    secret = Settings().serving.token_secret
    if secret is None:
        raise BadInput(
            "tokens are disabled: set AFTERCLICK_SERVING__TOKEN_SECRET (openssl rand -hex 32)"
        )
    typer.echo(new_token(secret, user_id, hours * 3600)[0])


def _given(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}

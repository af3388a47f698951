"""The `afterclick` command.

Command functions import what they run, so that help is instant and a process loads only the
packages of its own extra.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from infra.cli import (
    bench,
    control,
    data,
    evaluate,
    ingest,
    prequential,
    simulate,
    stack,
    stream,
    train,
)
from infra.cli.output import one_line_errors

GROUPS = {
    "data": data.app,
    "ingest": ingest.app,
    "pipeline": train.pipeline_app,
    "models": train.models_app,
    "als": evaluate.als_app,
    "bench": bench.app,
    "dlq": stream.dlq_app,
    "db": control.db_app,
    "rules": control.rules_app,
    "experiments": control.experiments_app,
    "api-key": control.keys_app,
}
FLAT = (stack.app, stream.app, train.app, evaluate.app, prequential.app, simulate.app)

app = typer.Typer(
    name="afterclick",
    help="An event-driven streaming recommender: the list changes after the click.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # with rich, help takes half as long again
)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)
for commands in FLAT:
    app.registered_commands += commands.registered_commands


def root_command() -> Any:
    """The command `afterclick` with all of its groups."""
    return typer.main.get_command(app)


def main() -> None:
    """Run the command line; an error becomes one line on standard error and an exit code."""
    from afterclick.io.files import PRIVATE

    os.umask(PRIVATE)
    if len(sys.argv) > 1 and "--help" not in sys.argv:  # help need not wait for structlog
        from afterclick.io.logging import configure_logging

        configure_logging()
    with one_line_errors():
        app()

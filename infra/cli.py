"""The `afterclick` command: one module in `infra/commands` per group, errors as one line, exit codes.

Command modules import what they run inside their functions, so that help is instant and a process has only
the packages of its own extra.
"""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from afterclick.errors import AfterclickError
from infra.commands import register

app = typer.Typer(
    name="afterclick",
    help="An event-driven streaming recommender: the list changes after the click.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
register(app)


def main() -> None:
    """Run the command line; an AfterclickError becomes one line on standard error and its exit code."""
    try:
        app()
    except AfterclickError as error:
        Console(stderr=True).print(f"[red]{type(error).__name__}[/red]: {error}", highlight=False)
        sys.exit(error.exit_code)

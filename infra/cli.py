"""The `afterclick` command: one module in `infra/commands` per group, errors as one line, exit codes.

Command modules import what they run inside their functions, so that help is instant and a process has only
the packages of its own extra.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

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
    with shown_as_one_line():
        app()


@contextmanager
def shown_as_one_line() -> Iterator[None]:
    """End the process with the error's exit code, and its message in place of a traceback."""
    try:
        yield
    except AfterclickError as error:
        console = Console(stderr=True, soft_wrap=True)
        console.print(f"[red]{type(error).__name__}[/red]:", escape(str(error)), highlight=False)
        sys.exit(error.exit_code)

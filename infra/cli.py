"""The `afterclick` command: one module in `infra/commands` per group, errors as one line, exit
codes.

Command modules import what they run inside their functions, so that help is instant and a process
has only
the packages of its own extra.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from afterclick.errors import AfterclickError, BadInput
from afterclick.io.logging import configure_logging
from infra.commands import register

app = typer.Typer(
    name="afterclick",
    help="An event-driven streaming recommender: the list changes after the click.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
register(app)


def main() -> None:
    """Run the command line; an AfterclickError becomes one line on standard error and its exit
    code.
    """
    configure_logging()
    with one_line_errors():
        app()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with the error's exit code, and its message in place of a traceback."""
    try:
        yield
    except AfterclickError as error:
        _end(error)
    except ValidationError as error:
        if error.title != "Settings":
            raise
        _end(_bad_setting(error))


def _end(error: AfterclickError) -> NoReturn:
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"[red]{type(error).__name__}[/red]:", escape(str(error)), highlight=False)
    sys.exit(error.exit_code)


def _bad_setting(error: ValidationError) -> BadInput:
    """The first wrong setting, by the name of its environment variable."""
    problem = error.errors(include_url=False)[0]
    variable = "AFTERCLICK_" + "__".join(str(part).upper() for part in problem["loc"])
    return BadInput(f"{variable}: {problem['msg']} (docs/settings.md lists every setting)")

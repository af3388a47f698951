"""`afterclick ui`."""

from __future__ import annotations

import typer

app = typer.Typer(help="ui", no_args_is_help=True)

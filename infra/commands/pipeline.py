"""`afterclick pipeline`."""

from __future__ import annotations

import typer

app = typer.Typer(help="pipeline", no_args_is_help=True)

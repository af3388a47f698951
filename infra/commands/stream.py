"""`afterclick stream`."""

from __future__ import annotations

import typer

app = typer.Typer(help="stream", no_args_is_help=True)

"""`afterclick reconcile`."""

from __future__ import annotations

import typer

app = typer.Typer(help="reconcile", no_args_is_help=True)

"""The commands, a module per group."""

from __future__ import annotations

import importlib

import typer

# groups become `afterclick <group> <command>`; flat modules add their commands at the top
_GROUPS = (
    "data",
    "ingest",
    "pipeline",
    "models",
    "als",
    "bench",
    "dlq",
    "db",
    "rules",
    "experiments",
    "api_key",
)
_FLAT = (
    "stack",
    "stream",
    "train",
    "evaluate",
    "benchmark",
    "serve",
    "ui",
    "simulate",
    "reconcile",
    "forget",
)


def register(app: typer.Typer) -> None:
    """Add every command module to the application. Each has an `app` (a typer.Typer)."""
    for name in _GROUPS:
        app.add_typer(
            importlib.import_module(f"infra.commands.{name}").app, name=name.replace("_", "-")
        )
    for name in _FLAT:
        app.registered_commands += importlib.import_module(
            f"infra.commands.{name}"
        ).app.registered_commands

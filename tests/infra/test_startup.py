"""Help of every command loads none of the packages that commands work with."""

from __future__ import annotations

import json
import subprocess
import sys

from infra.cli import root_command
from infra.cli.reference import command_names

HEAVY = ("mlflow", "torch", "pyspark", "numba", "faiss", "numpy", "pandas", "structlog")
SCRIPT = """
import contextlib, io, json, sys
from infra.cli import main

for words in json.loads(sys.argv[1]):
    sys.argv = ["afterclick", *words, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        main()
    assert "Usage" in shown.getvalue(), words
print(json.dumps(sorted(sys.modules)))
"""


def packages_loaded_by_help(*commands: list[str]) -> set[str]:
    """Top-level packages that a process loads for the help of commands."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=True,
    )
    return {module.partition(".")[0] for module in json.loads(done.stdout)}


def test_help_of_every_command_loads_no_heavy_package() -> None:
    commands = [name.split()[1:] for name in command_names(root_command())]
    assert len(commands) > 30
    assert not packages_loaded_by_help([], *commands) & set(HEAVY)


def test_the_list_of_commands_does_not_load_pydantic() -> None:
    assert "pydantic" not in packages_loaded_by_help([])
    assert "pydantic" in packages_loaded_by_help(["data"]), "control: typer loads it for a command"

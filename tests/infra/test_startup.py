"""Help loads none of the packages that commands work with, and commands load the largest ones only
where they need them."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from infra.cli import root_command
from infra.cli.reference import command_names

ROOT = Path(__file__).parents[2]
HEAVY = ("mlflow", "torch", "pyspark", "numba", "faiss", "numpy", "pandas", "structlog")
LARGEST = {"mlflow", "torch", "pyspark"}
SPARK = ("als", "bench", "evaluate", "pipeline", "rebuild", "retrain", "stream", "train")
"""First words of the commands that run Spark, or benchmarks of code that does."""
HELP = """
import contextlib, io, json, sys
from infra.cli import main

for words in json.loads(sys.argv[1]):
    sys.argv = ["afterclick", *words, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        main()
    assert "Usage" in shown.getvalue(), words
print(json.dumps(sorted(sys.modules)))
"""
IMPORT = """
import importlib, json, sys

for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def packages_loaded(script: str, argument: Iterable[object]) -> set[str]:
    """Top-level packages that a fresh process has loaded at the end of a script."""
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(list(argument))],
        capture_output=True,
        text=True,
        check=True,
    )
    return {module.partition(".")[0] for module in json.loads(done.stdout.splitlines()[-1])}


def functions_of(command: Any, *words: str) -> Iterator[tuple[tuple[str, ...], Callable[..., Any]]]:
    """The words and the function of every command, also of hidden ones."""
    for name, child in getattr(command, "commands", {}).items():
        yield from functions_of(child, *words, name)
    if not hasattr(command, "commands"):
        yield words, inspect.unwrap(command.callback)


def modules_imported_by(function: Callable[..., Any]) -> set[str]:
    """The project's modules that a call imports, in this function or those of its module."""
    tree = ast.parse(inspect.getsource(sys.modules[function.__module__]))
    bodies: dict[str, ast.AST] = {
        node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)
    }
    waiting, found = [function.__name__], set()
    while waiting:
        for node in ast.walk(bodies.pop(waiting.pop(), ast.Pass())):
            if isinstance(node, ast.Name):
                waiting.append(node.id)
            elif isinstance(node, ast.ImportFrom):
                found |= {f"{node.module}", *(f"{node.module}.{name.name}" for name in node.names)}
    return {name for name in found if (ROOT / name.replace(".", "/")).with_suffix(".py").exists()}


def test_help_of_every_command_loads_no_heavy_package() -> None:
    commands = [name.split()[1:] for name in command_names(root_command())]
    assert len(commands) > 30
    assert not packages_loaded(HELP, [[], *commands]) & set(HEAVY)


def test_the_list_of_commands_does_not_load_pydantic() -> None:
    assert "pydantic" not in packages_loaded(HELP, [[]])
    assert "pydantic" in packages_loaded(HELP, [["data"]]), "control: typer loads it for a command"


def test_only_commands_that_run_spark_import_it_and_none_imports_torch_or_mlflow() -> None:
    imported: dict[bool, set[str]] = {True: set(), False: set()}
    for words, function in functions_of(root_command()):
        imported[words[0] in SPARK] |= modules_imported_by(function)
    assert {"serving.app", "infra.demo.demo", "training.mlflow_registry"} <= imported[False]
    assert {"streaming.job", "training.pipeline", "training.schedule"} <= imported[True]
    assert not packages_loaded(IMPORT, sorted(imported[False])) & LARGEST
    assert packages_loaded(IMPORT, sorted(imported[True])) & LARGEST == {"pyspark"}

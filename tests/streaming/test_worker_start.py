"""Spark's Python daemon imports for its workers what they would each import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyspark
import pytest

PROGRAM = """
import sys
import pyspark.worker
from streaming import worker
from streaming.records import Output
if sys.argv[1] == "preloaded":
    worker.preload()
before = len(sys.modules)
worker._outputs_to_arrow([Output("state-changes", b"alice", b"{}", 0)])
print(len(sys.modules) - before)
"""


@pytest.mark.parametrize("preloaded", [True, False])
def test_the_first_outputs_of_a_worker_import_nothing(preloaded: bool) -> None:
    """The control: without the daemon's imports, they import pandas."""
    how = "preloaded" if preloaded else "control"
    command = [sys.executable, "-c", PROGRAM, how]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    imported = int(printed.split()[-1])
    assert (imported == 0) if preloaded else (imported > 100)


TASKS = """
import importlib, sys
from streaming import worker
opened = []
sys.addaudithook(lambda name, args: opened.append(args[0]) if name == "open" else None)
importlib.import_module("pyspark.worker")
assert ".zip" in sys.modules["pyspark.worker"].__file__
if sys.argv[1] == "dropped":
    worker.drop_archives()
opened.clear()
importlib.invalidate_caches()
print(sum(str(path).endswith(".zip") for path in opened))
importlib.import_module("pyspark.sql.window")
"""


@pytest.mark.parametrize("dropped", [True, False])
def test_a_task_does_not_read_the_archives_of_spark(dropped: bool) -> None:
    """The control: as Spark starts its daemon, each task does. Their modules can be imported."""
    archive = Path(pyspark.__file__).parent / "python" / "lib" / "pyspark.zip"
    command = [sys.executable, "-c", TASKS, "dropped" if dropped else "control"]
    env = os.environ | {"PYTHONPATH": f"{archive}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    read = int(printed.split()[-1])
    assert (read == 0) if dropped else (read > 0)

"""Spark's Python daemon imports for its workers what they would each import."""

from __future__ import annotations

import subprocess
import sys

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

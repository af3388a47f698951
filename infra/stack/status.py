"""`afterclick status` as a table."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def table(found: dict[str, Any]) -> RenderableType:
    """The record of a stack, as record.read gives it."""
    if not found["running"]:
        return Text(
            f"no stack runs in {found['home']}: start one with `afterclick up` or `make demo`"
        )
    rows: list[RenderableType] = [
        Text(f"stack {found['pid']}, data in {found['home']}"),
        _parts(found["parts"]),
    ]
    for stage in found["stages"]:
        if stage["state"] != "waiting":
            share = f" {stage['done']:,}/{stage['total']:,}" if stage["total"] else ""
            rows.append(Text(f"{stage['name']}: {stage['state']}{share} {stage['note']}"))
    if figures := found["figures"]:
        rows.append(
            Text(
                f"{figures['log_events']:,} events in the log, {figures['lag']:,} not yet applied, "
                f"{figures['archived_events']:,} archived; model {figures['model_version'] or 'none yet'}"
            )
        )
    return Group(*rows)


def _parts(parts: list[dict[str, Any]]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("part", "state"):
        shown.add_column(heading)
    for heading in ("pid", "port", "MiB", "restarts"):
        shown.add_column(heading, justify="right")
    for heading in ("where", "log"):
        shown.add_column(heading, overflow="fold")
    for part in parts:
        memory = part.get("memory_mib")
        figures = (part["pid"], part["port"], round(memory) if memory else None, part["restarts"])
        row = [part["name"], part["state"], *("-" if f is None else str(f) for f in figures)]
        shown.add_row(*row, part["url"] or "", part["log"])
    return shown

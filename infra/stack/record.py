"""What a running stack writes down for other shells, and what `afterclick status` makes of it.

writes  file  <home>/stack.json  once a second, while a stack runs
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.stack.layout import addresses
from infra.stack.lock import holder
from infra.stack.part import memory_mib
from infra.stack.stages import Figures
from infra.stack.supervisor import Stack


def describe(stack: Stack, figures: Figures) -> dict[str, Any]:
    """The stack as JSON."""
    return {
        "running": True,
        "pid": os.getpid(),
        "age_s": round(stack.age, 1),
        "home": str(stack.layout.home),
        "env": addresses(stack.layout.settings),
        "parts": [part.as_json() for part in stack.parts],
        "stages": [stage.as_json() for stage in stack.stages],
        "figures": figures.as_json(),
    }


async def keep(stack: Stack, figures: Callable[[], Figures]) -> None:
    """Write the record once a second, until the stack stops."""
    while True:
        await asyncio.to_thread(_write, stack.layout.home, describe(stack, figures()))
        await asyncio.sleep(1.0)


def read(home: Path) -> dict[str, Any]:
    """The state of the stack of this home: running or not, its parts with their memory."""
    pid = holder(home)
    if pid is None:
        return {
            "running": False,
            "pid": None,
            "home": str(home),
            "parts": [],
            "stages": [],
            "figures": {},
        }
    try:
        found: dict[str, Any] = json.loads((home / "stack.json").read_text())
    except (OSError, ValueError):
        found = {}
    if found.get("pid") != pid:  # it has only just begun
        found = {
            "running": True,
            "pid": pid,
            "home": str(home),
            "parts": [],
            "stages": [],
            "figures": {},
        }
    for part in found["parts"]:
        part["memory_mib"] = memory_mib(part["pid"])
    return found


def _write(home: Path, content: dict[str, Any]) -> None:
    staging = home / f".stack.json.{os.getpid()}"
    staging.write_text(json.dumps(content))
    staging.replace(home / "stack.json")

"""Fresh lists of this checkout and of another one, in alternating phases of one run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import structlog

from afterclick.errors import Unavailable
from infra.benchmarks.harness import READY_S, Figures, RunningApi
from infra.benchmarks.load import RequestSpec, closed_loop, open_loop
from infra.embedded.process import Process

log = structlog.get_logger()
ROUNDS = 3
SCRIPT = Path(__file__).with_name("checkout_server.py")
BUILD_S = 600.0
"""Timeout for the other checkout to build its shop."""


@dataclass(frozen=True)
class Phase:
    """What is sent to one API in each round."""

    rate: float
    seconds: float
    saturate_s: float
    clients: int

    @property
    def fixed(self) -> int:
        """Requests at the fixed rate."""
        return int(self.rate * self.seconds)

    def run(self, api: RunningApi, calls: list[RequestSpec]) -> dict[str, float]:
        """Figures of one round; the first `fixed` calls at the fixed rate. Raises Unavailable."""
        before, reduced_before = api.cpu_s(), _reduced(api)
        result = open_loop(api.port, calls[: self.fixed], self.rate)
        cpu_ms = (api.cpu_s() - before) * 1000 / max(len(result.latencies_ms), 1)
        reduced = _reduced(api) - reduced_before
        saturated = closed_loop(api.port, calls[self.fixed :], self.saturate_s, self.clients)
        if errors := result.errors + saturated.errors:
            raise Unavailable(f"{len(errors)} errors of the API on port {api.port}: {errors[0]}")
        return {
            "cpu_ms_per_request": cpu_ms,
            "reduced": reduced,
            "p50_ms": result.percentile(50),
            "p99_ms": result.percentile(99),
            "max_rps": saturated.rate,
            "rss_mb": api.rss_mb(),
        }


def _reduced(api: RunningApi) -> int:
    """Lists made of fewer candidates under load; the counter of older commits has another name."""
    names = ("afterclick_reduced_lists_total", "afterclick_brief_lists_total")
    return sum(map(api.metric, names))


def compare(
    ours: RunningApi, theirs: RunningApi, phase: Phase, calls: Iterator[list[RequestSpec]]
) -> Figures:
    """Medians of `ROUNDS` rounds in which both are asked in turn, after one that warms them up.

    `calls`: those of a phase, other ones for each. `ratio`: the other checkout's figure per ours.
    `reduced` lists cost less than complete ones: compare where there are none.
    """
    rounds: list[tuple[dict[str, float], dict[str, float]]] = []
    for number in range(ROUNDS + 1):
        row = phase.run(ours, next(calls)), phase.run(theirs, next(calls))
        log.info("round", number=number, ours=row[0], theirs=row[1])
        rounds.append(row)
    mine, other = (
        {name: round(median(row[side][name] for row in rounds[1:]), 3) for name in rounds[0][0]}
        for side in (0, 1)
    )
    ratio = {name: round(other[name] / mine[name], 2) for name in mine if mine[name]}
    return {"rounds": ROUNDS, "rate": phase.rate, **other, "ours": mine, "ratio": ratio}


@contextmanager
def checkout_api(
    folder: Path, items: int, users: int, changes_per_s: float, home: Path
) -> Iterator[RunningApi]:
    """The API of another checkout with its own synthetic shop, without a response cache.

    Needs its environment in `.venv` (`make setup` there). Raises Unavailable.
    """
    python = folder / ".venv" / "bin" / "python"
    if not python.exists():
        raise Unavailable(f"{python} does not exist: run `make setup` in {folder}")
    printed: list[dict[str, Any]] = []

    def read(line: str) -> None:
        if line.startswith('{"port"'):
            printed.append(json.loads(line))

    arguments = (str(folder), str(items), str(users), str(changes_per_s))
    process = Process(
        "baseline",
        [python, "-P", SCRIPT, *arguments],
        home / "logs" / "baseline.log",
        on_output=read,
    )
    process.start()
    try:
        process.wait_ready(lambda: bool(printed), BUILD_S + READY_S)
        api = printed[0]
        yield RunningApi(api["port"], psutil.Process(api["pid"]))
    finally:
        process.stop(60.0)


def commit_of(folder: Path) -> str:
    """The short hash of a checkout's commit; empty where it has none."""
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

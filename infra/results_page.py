"""Results as data: record the output of a command, and generate docs/results.md from the records.

reads   file  docs/results/*.json
writes  file  docs/results/<name>.json (`python -m infra.results_page NAME COMMAND...`)
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from afterclick.errors import BadInput
from afterclick.io.files import write_atomically

FOLDER = Path("docs/results")
_ADDITIONS = 10_000_000


class Machine(BaseModel):
    """Where a result was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cores: int
    python: str
    additions_s: float | None = None
    """Seconds for ten million additions in Python: the speed of the machine at that moment."""


class ResultRecord(BaseModel):
    """The `--json` output of a command with its origin."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    commit: str
    date: str
    machine: Machine
    output: dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One row of the page: a value of the output, and its bar where it has one."""

    label: str
    path: str
    """Keys of nested objects, separated by dots; a number indexes a list."""
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    def bar(self) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:,g} {self.unit}".strip()
        return "" if self.at_least is None else f"≥ {self.at_least:,g} {self.unit}".strip()

    def met(self, value: float) -> str:
        if self.at_most is None and self.at_least is None:
            return ""
        low, high = self.at_least, self.at_most
        return "yes" if (low is None or value >= low) and (high is None or value <= high) else "no"


@dataclass(frozen=True)
class Section:
    """The results of one command."""

    title: str
    figures: tuple[Figure, ...]


SECTIONS: dict[str, Section] = {
    "freshness": Section(
        "Freshness: `POST /feedback` to the pushed list",
        (
            Figure("p50", "push_ms.p50", "ms", at_most=15),
            Figure("p99", "push_ms.p99", "ms", at_most=100),
            Figure("p99.9", "push_ms.p999", "ms", at_most=300),
            Figure(
                "median, compared with micro-batches", "times_micro_batch_p50", "times", at_least=20
            ),
        ),
    ),
    "ingest": Section(
        "Ingest: Kafka to Redis, exactly once",
        (
            Figure("events per second", "events_per_s", at_least=15_000),
            Figure("compared with a writer without guarantees", "times_naive", "times"),
            Figure("events per second, replay producer", "producer_events_per_s", at_least=100_000),
            Figure("differences found by `reconcile`", "reconcile_differences", at_most=0),
        ),
    ),
    "serve": Section(
        "Serving: 60,000 items, 300 requests per second",
        (
            Figure("p50", "p50_ms", "ms", at_most=2),
            Figure("p99", "p99_ms", "ms", at_most=10),
            Figure("requests per second at saturation", "max_rps", at_least=1_200),
            Figure("compared with plain FastAPI", "times_plain", "times", at_least=1.5),
            Figure("wrong or late answers", "errors", at_most=0),
        ),
    ),
    "swap": Section(
        "Model swaps under load",
        (
            Figure("p99 compared with the time before", "times_quiet_p99", "times", at_most=2),
            Figure("errors", "errors", at_most=0),
        ),
    ),
    "degrade": Section(
        "Degradation: Redis, Kafka, model and SQL fail in turn",
        (
            Figure("worst p99 of lists", "worst_p99_ms", "ms", at_most=300),
            Figure("slowest recovery", "worst_recovery_s", "s", at_most=15),
            Figure("errors", "errors", at_most=0),
        ),
    ),
    "retrain": Section(
        "Retraining under load",
        (
            Figure("training due after", "due_after_s", "s"),
            Figure("new model served after", "served_after_s", "s"),
            Figure("p99 of lists during the run", "p99_ms", "ms"),
            Figure("errors", "errors", at_most=0),
        ),
    ),
    "gate": Section(
        "Release gate: simulated challengers, 16,000 questions",
        (
            Figure("refused, of those 10 % worse", "refused_at_minus_10", at_least=0.95),
            Figure("promoted, of equal ones", "promoted_at_0", at_least=0.8),
            Figure("relative loss shown with 80 %", "detectable_loss"),
        ),
    ),
    "ui": Section(
        "Dashboard: click to painted list",
        (
            Figure("p50", "click_to_screen_ms.p50", "ms"),
            Figure("p95", "click_to_screen_ms.p95", "ms", at_most=150),
            Figure("first paint, p95", "first_paint_ms.p95", "ms", at_most=1_500),
        ),
    ),
    "poison": Section(
        "Push attacks on the trends of new visitors, moments that no choice has seen",
        (
            Figure(
                "gain of the target, new accounts",
                "trending.unseen.worst.new_accounts.target_gain",
                at_most=0.05,
            ),
            Figure("change of NDCG@10 without an attack", "trending.unseen.rows.1.ndcg_change"),
            Figure(
                "change of NDCG@10, worst attack by new accounts",
                "trending.unseen.worst.new_accounts.ndcg_change",
                at_least=-0.01,
            ),
            Figure(
                "the same at the moments of the choice",
                "trending.tuned.worst.new_accounts.ndcg_change",
                at_least=-0.01,
            ),
            Figure(
                "gain of the target, accounts that wait two weeks",
                "trending.unseen.worst.aged_accounts.target_gain",
            ),
        ),
    ),
    "faults": Section(
        "Faults: every case with a control that fails without the protection",
        (
            Figure("lost events", "lost", at_most=0),
            Figure("events counted twice", "double", at_most=0),
        ),
    ),
}


QUALITY = Section(
    "Quality: HR@10 of the blend, on a global time split",
    (
        Figure("live", "models.blend.live.hr@10", at_least=0.085),
        Figure(
            "live, compared with decayed popularity",
            "blend.times_decayed_popularity",
            "times",
            at_least=1.9,
        ),
        Figure("live, targets of the same day", "models.blend.live_same_day.hr@10"),
        Figure("live, targets of a later day", "models.blend.live_later.hr@10", at_least=0.07),
        Figure("returning", "models.blend.returning.hr@10", at_least=0.081),
        Figure("cold", "models.blend.cold.hr@10", at_least=0.042),
        Figure("value of the live event", "freshness.blend.parts.live_event.hr@10"),
        Figure("value of fresh trends", "freshness.blend.parts.trends.hr@10"),
        Figure("loss of a state that is not updated", "freshness.blend.parts.staleness.hr@10"),
    ),
)


def page(folder: Path = FOLDER) -> str:
    """docs/results.md. Raises BadInput for a record that is malformed or lacks a figure."""
    lines = [
        "# Results",
        "",
        "Generated by `make docs` from `docs/results/*.json`: each is the `--json` output of the",
        "named command with commit, date and machine. How the bars were chosen and what was tried:",
        "[decisions](decisions/README.md).",
    ]
    for name, section in SECTIONS.items():
        path = folder / f"{name}.json"
        if path.exists():
            lines += ["", *_section(section, read_record(path), path)]
    if (evaluation := folder / "evaluate.json").exists():
        result = read_record(evaluation)
        lines += ["", *_section(QUALITY, result, evaluation), "", *_evaluation(result)]
    return "\n".join(lines) + "\n"


def read_record(path: Path) -> ResultRecord:
    """A stored result. Raises BadInput for a malformed file."""
    try:
        return ResultRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise BadInput(f"{path}: {place}: {first['msg']}; record it again") from None


def record(name: str, command: list[str], folder: Path = FOLDER) -> ResultRecord:
    """Run a command that prints one JSON object as its last line, and store the result.

    Raises BadInput for an unknown name, a failed command or another output.
    """
    if name not in {*SECTIONS, "evaluate"}:
        raise BadInput(f"{name}: unknown result; known are {', '.join([*SECTIONS, 'evaluate'])}")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    text = " ".join(command)
    try:
        output = json.loads(done.stdout.strip().split("\n")[-1])
    except ValueError:
        output = None
    if done.returncode or not isinstance(output, dict):
        raise BadInput(f"{text}: exit status {done.returncode}, no JSON object as the last line")
    result = ResultRecord(
        command=text,
        commit=_git("rev-parse", "--short", "HEAD"),
        date=datetime.now(UTC).date().isoformat(),
        machine=this_machine(),
        output=output,
    )
    write_atomically(folder / f"{name}.json", result.model_dump_json(indent=1) + "\n")
    return result


def this_machine() -> Machine:
    """Cores, Python version and current speed of this machine."""
    began = time.perf_counter()
    total = 0
    for n in range(_ADDITIONS):
        total += n
    seconds = round(time.perf_counter() - began, 2)
    return Machine(cores=os.cpu_count() or 1, python=platform.python_version(), additions_s=seconds)


def _section(section: Section, result: ResultRecord, path: Path) -> list[str]:
    rows = []
    for figure in section.figures:
        value = _value(result.output, figure.path, path)
        number = f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        shown = f"{number} {figure.unit}".strip()
        rows.append(f"| {figure.label} | {shown} | {figure.bar()} | {figure.met(value)} |")
    head = ["| figure | latest | bar | met |", "|---|---|---|---|"]
    return [f"## {section.title}", "", *head, *rows, "", _origin(result)]


def _origin(result: ResultRecord) -> str:
    machine = result.machine
    speed = "" if machine.additions_s is None else f", 10 M additions in {machine.additions_s} s"
    where = f"{machine.cores} cores, Python {machine.python}{speed}"
    return f"`{result.command}`, commit {result.commit}, {result.date}, {where}."


def _value(output: Any, path: str, file: Path) -> float:
    value = output
    for key in path.split("."):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, TypeError, ValueError):
            raise BadInput(f"{file}: no {path} in its output; record it again") from None
    return float(value)


def _evaluation(result: ResultRecord) -> list[str]:
    """HR@10 and NDCG@10 of each model by protocol."""
    models: dict[str, Any] = result.output["models"]
    users: dict[str, int] = result.output["split"]["users"]
    lines = [
        "## All models: HR@10 (NDCG@10), full ranking",
        "",
        "| model | " + " | ".join(f"{name}, {n:,} users" for name, n in users.items()) + " |",
        "|---|" + "---|" * len(users),
    ]
    for model, protocols in models.items():
        cells = (_quality(protocols.get(name)) for name in users)
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return [*lines, "", _origin(result)]


def _quality(metrics: dict[str, Any] | None) -> str:
    return "" if metrics is None else f"{metrics['hr@10']:.4f} ({metrics['ndcg@10']:.4f})"


def _git(*arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], text=True).strip()


if __name__ == "__main__":
    record(sys.argv[1], sys.argv[2:])

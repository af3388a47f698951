"""`afterclick evaluate`: from interactions to the table of all models.

reads   a dataset (training/evaluation/reviews.py), or parquet <home>/etl/<version>
writes  standard output; with a report, <report>/report.md and its pictures; recorded, an MLflow run
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table

from afterclick.errors import BadInput
from afterclick.events import Action
from afterclick.settings import Settings
from afterclick.trends import DAY_MS
from training import als, implicit_als, interactions, workspace
from training.als import AlsConfig
from training.evaluation import build, metrics, report, reviews
from training.evaluation.build import Factorise, Recipe
from training.evaluation.clicks import simulate
from training.evaluation.compare import Answers, Catalogue, answer_all, freshness, measure
from training.evaluation.contestants import contestants
from training.evaluation.protocols import Split
from training.evaluation.reviews import Reviews
from training.evaluation.segments import segments
from training.interactions import Interactions
from training.mlflow_registry import MlflowRegistry
from training.ranker import NotEnoughHistory, RankerConfig

_SHOWN = ("hr@10", "hr@20", "ndcg@10", "recall@20", "mrr", "coverage@10")
_LEAST_AFTER = 0.05
"""Share of the rows that the default cut leaves for the test."""


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    dataset: Path | None
    cut: str | None
    end: str | None
    users: int
    engine: str
    report: Path | None
    record: bool
    brief: bool
    json: bool


@dataclass(frozen=True)
class Outcome:
    """Everything an evaluation found."""

    split: Split
    answers: dict[str, Answers]
    result: dict[str, Any]


def run(settings: Settings, request: Request) -> Outcome:
    """Evaluate, print the table, and the JSON where asked for."""
    console = Console(stderr=request.json)
    with console.status("reading the interactions"):
        split, data = split_of(settings, request.dataset, request.cut, request.end)
    with (
        console.status("fitting every model as of the cut, and the blend on earlier cuts"),
        _engine(settings, request.engine) as factorise,
    ):
        outcome = evaluate(split, data, recipe(settings, factorise), request.users, request.brief)
    _print(console, outcome.result)
    if request.report is not None:
        console.print(f"report: {report.write(request.report, outcome.result)}")
    if request.record:
        console.print(f"MLflow run: {record(settings, outcome.result, request)}")
    if request.json:
        print(orjson.dumps(outcome.result, option=orjson.OPT_SERIALIZE_NUMPY).decode())
    return outcome


def record(settings: Settings, result: dict[str, Any], request: Request) -> str:
    """An MLflow run with the recipe, every metric as `model.protocol.metric`, and the report; its id."""
    registry = MlflowRegistry(settings)
    split = result["split"]
    asked = {
        "users": request.users,
        "engine": request.engine,
        "cut": split["cut"],
        "end": split["end"],
    }
    run_id = registry.start(
        f"evaluate {split['cut']}", result["recipe"] | asked, {"kind": "evaluate"}
    )
    figures = {
        f"{model}.{protocol}.{name}": value
        for model, protocols in result["models"].items()
        for protocol, measured in protocols.items()
        for name, value in measured.items()
        if isinstance(value, float)
    }
    registry.metrics(run_id, figures)
    with tempfile.TemporaryDirectory(prefix="afterclick-report-") as folder:
        registry.files(run_id, report.write(Path(folder) / "report", result).parent)
    registry.finish(run_id)
    return run_id


def recipe(settings: Settings, factorise: Factorise) -> Recipe:
    """How the settings make a model."""
    knobs = settings.training
    return Recipe(
        factorise=factorise,
        als=AlsConfig(knobs.rank, knobs.reg, knobs.alpha, knobs.iterations, knobs.seed),
        ranker=RankerConfig(least=knobs.least_reviews, seed=knobs.seed),
        least=knobs.least_reviews,
    )


def evaluate(split: Split, data: Reviews, how: Recipe, users: int, brief: bool = False) -> Outcome:
    """Fit on the past, ask about the future, measure. Raises BadInput where there is too little past."""
    start = time.perf_counter()
    try:
        made, blend = build.fit(split, data.catalogue, how)
    except NotEnoughHistory as error:
        raise BadInput(
            f"cannot evaluate the blend: {error}; give more interactions or a later --cut"
        ) from None
    model = made.model
    fitted = time.perf_counter()
    every = replace(made, eligible=np.ones_like(made.eligible))
    asked = contestants(made, brief=brief), contestants(every, brief=brief)
    answers = answer_all(split, *asked, users, how.als.seed)
    facts = Catalogue(
        counts=split.train.item_counts(),
        vectors=_unit(model.factors)
        if model.factors is not None
        else np.zeros((len(model), 1), np.float32),
        ranked=int(split.eligible.sum()),
        users=len(np.unique(split.train.user)),
        profiles=metrics.profile_popularity(
            split.train.user, split.train.item, len(split.rows.user_ids)
        ),
    )
    ranked = {"cold_items": replace(facts, ranked=len(model))}
    measured = {
        protocol: measure(found, ranked.get(protocol, facts)) for protocol, found in answers.items()
    }
    names = next(iter(measured.values()))
    result = {
        "recipe": how.parameters(),
        "split": _facts(split, answers, how),
        "models": {name: {p: measured[p][name] for p in measured} for name in names},
        "segments": segments(split, answers["live"]),
        "clicks": simulate(answers["live"]),
        "freshness": {name: freshness(answers["live"], answers["frozen"], name) for name in names},
        "blend": {
            "questions": blend.questions,
            "candidate_recall": blend.candidate_recall,
            "importance": blend.importance,
        },
        "seconds": {"fit": round(fitted - start, 1), "ask": round(time.perf_counter() - fitted, 1)},
    }
    return Outcome(split, answers, result)


def cut_of(rows: Interactions, day: str | None, option: str = "--cut") -> int:
    """The first test moment, ms. Raises BadInput for a day that leaves no past or no future."""
    if day is None:
        return _default_cut(rows)
    try:
        cut = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000)
    except ValueError:
        raise BadInput(f"{option} {day!r}: expected a day as yyyy-mm-dd") from None
    if not rows.time_ms[0] < cut <= rows.time_ms[-1]:
        raise BadInput(
            f"{option} {day}: the interactions run from {_day(rows.time_ms[0])} to {_day(rows.time_ms[-1])}"
        )
    return cut


def _default_cut(rows: Interactions) -> int:
    """The first of the last month with 5 % of the rows after it; in a shorter log the day that leaves 8 %."""
    moment = datetime.fromtimestamp(
        int(rows.time_ms[int(len(rows) * (1 - _LEAST_AFTER))]) / 1000, UTC
    )
    cut = int(moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp() * 1000)
    if np.searchsorted(rows.time_ms, cut) >= 0.5 * len(rows):
        return cut
    late = int(rows.time_ms[int(len(rows) * 0.92)])
    midnight = late // int(DAY_MS) * int(DAY_MS)
    return midnight if rows.time_ms[0] < midnight else late


def split_of(
    settings: Settings, dataset: Path | None, cut: str | None, end: str | None = None
) -> tuple[Split, Reviews]:
    """The interactions, cut at a day, without those from the day `end` on. Raises BadInput, BadDataset."""
    data = _data(settings, dataset)
    if end is not None:
        early = data.rows.time_ms < cut_of(data.rows, end, "--end")
        data = replace(data, rows=data.rows.where(early), trusted=data.trusted[early])
    rows = data.rows
    return Split(rows, cut_of(rows, cut), int(rows.time_ms[-1]) + 1, data.trusted), data


def _data(settings: Settings, dataset: Path | None) -> Reviews:
    if dataset is not None:
        return reviews.load(dataset, settings.stream.weights[Action.REVIEW])
    _, tables = workspace.latest(settings.home / "etl", "pipeline etl")
    return reviews.from_etl(tables, interactions.load_catalogue(tables))


@contextmanager
def _engine(settings: Settings, name: str) -> Iterator[Factorise]:
    if name == "implicit":
        yield implicit_als.fit
    elif name == "spark":
        from training.workspace import spark_session

        with spark_session(settings) as session:
            yield lambda rows, config: als.fit(session, rows, config)
    else:
        raise BadInput(f"--engine {name!r}: expected implicit or spark")


def _facts(split: Split, answers: dict[str, Answers], how: Recipe) -> dict[str, Any]:
    valid_from = split.cut_ms - how.ranker.horizon_days * int(DAY_MS)
    times = split.rows.time_ms
    return {
        "cut": _day(split.cut_ms),
        "end": _day(split.end_ms),
        "train": int(np.searchsorted(times, split.cut_ms)),
        "valid": int(np.searchsorted(times, split.cut_ms) - np.searchsorted(times, valid_from)),
        "test": len(split.test()),
        "items": int(split.eligible.sum()),
        "users": {protocol: len(found.asked) for protocol, found in answers.items()},
    }


def _unit(vectors: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0), np.float32)


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(int(time_ms) / 1000, UTC).date().isoformat()


def _print(console: Console, result: dict[str, Any]) -> None:
    split = result["split"]
    table = Table(
        title=f"cut {split['cut']}: {split['train']:,} rows before, {split['items']:,} items ranked"
    )
    for column in ("protocol", "model", *_SHOWN):
        table.add_column(column, justify="left" if column in ("protocol", "model") else "right")
    for protocol, users in split["users"].items():
        for name, measured in result["models"].items():
            figures = [_figure(measured[protocol][m]) for m in _SHOWN]
            table.add_row(f"{protocol} ({users:,})", name, *figures)
        table.add_section()
    console.print(table)
    gain = result["freshness"]["blend"]
    if gain["hr@10"] is not None:
        low, high = gain["hr@10_interval"]
        line = f"{gain['hr@10']:+.4f} [{low:+.4f}, {high:+.4f}]"
        console.print(f"freshness: HR@10 of the blend, live minus frozen: {line}")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

"""`afterclick evaluate`: every model on a global time split, by full ranking.

reads   a dataset (training/evaluation/reviews.py), or parquet <home>/etl/<version>
writes  standard output; with a report, <report>/report.md and its pictures; recorded, an MLflow run
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table

from afterclick.arrays import BoolArray, FloatArray
from afterclick.errors import BadInput
from afterclick.events import Action
from afterclick.settings import Settings
from afterclick.trends import DAY_MS
from training import interactions, workspace
from training.config import ModelConfig
from training.evaluation import list_metrics, report, reviews
from training.evaluation.list_analysis import segments, simulate
from training.evaluation.measure import (
    Answers,
    FullRanking,
    ItemFacts,
    Scorer,
    answer,
    freshness,
    measure,
)
from training.evaluation.reviews import Reviews
from training.evaluation.scorers import NCF_DECAY, NCF_EPOCHS, ScorerInputs, ncf, scorers
from training.fit import ModelTrainer, trainer
from training.interactions import Interactions, TooFewInteractions
from training.mlflow_registry import MlflowRegistry
from training.protocols import PROTOCOLS, EvaluationSplit, Queries, queries, sample
from training.query_replay import align
from training.ranker import BoosterRanker, FittedRanker

_SHOWN = ("hr@10", "hr@20", "ndcg@10", "recall@20", "mrr", "coverage@10")
_MIN_TEST_SHARE = 0.05
"""Share of the rows that the default cut leaves for the test."""
MakeScorers = Callable[[BoolArray], Mapping[str, Scorer]]
"""The scorers whose candidates are the items that a mask (n_items,) marks."""


@dataclass(frozen=True)
class EvaluationRequest:
    """Options of the command line."""

    dataset: Path | None = None
    cut: str | None = None
    end: str | None = None
    users: int = 5000
    preset: str | None = None
    engine: str | None = None
    report: Path | None = None
    record: bool = False
    reduced: bool = False
    json: bool = False


@dataclass(frozen=True)
class EvaluationResult:
    """The lists of every scorer, and the figures that are printed."""

    split: EvaluationSplit
    answers: dict[str, Answers]
    figures: dict[str, Any]


def run(settings: Settings, request: EvaluationRequest) -> EvaluationResult:
    """Evaluate and print the table; with `json`, the figures as one JSON object."""
    console = Console(stderr=request.json)
    config = ModelConfig.of(settings.training, request.preset, request.engine)
    with console.status("reading the interactions"):
        split, data = split_of(settings, request.dataset, request.cut, request.end)
    with (
        console.status("fitting every model as of the cut, and the ranker on earlier cuts"),
        trainer(settings, data.texts, config) as models,
    ):
        result = evaluate(split, models, request.users, reduced=request.reduced)
    _print(console, result.figures)
    if request.report is not None:
        console.print(f"report: {report.write(request.report, result.figures)}")
    if request.record:
        console.print(f"MLflow run: {record(settings, result.figures, request)}")
    if request.json:
        print(orjson.dumps(result.figures, option=orjson.OPT_SERIALIZE_NUMPY).decode())
    return result


def record(settings: Settings, figures: dict[str, Any], request: EvaluationRequest) -> str:
    """Write an MLflow run: configuration, metrics as `model.protocol.metric`, report. Returns its
    id."""
    registry = MlflowRegistry(settings)
    split = figures["split"]
    options = {
        "users": request.users,
        "preset": request.preset or settings.training.preset,
        "engine": figures["recipe"]["als"]["engine"],
        "cut": split["cut"],
        "end": split["end"],
    }
    run_id = registry.start(
        f"evaluate {split['cut']}", figures["recipe"] | options, {"kind": "evaluate"}
    )
    metrics = {
        f"{model}.{protocol}.{name}": value
        for model, protocols in figures["models"].items()
        for protocol, measured in protocols.items()
        for name, value in measured.items()
        if isinstance(value, float)
    }
    registry.metrics(run_id, metrics)
    with tempfile.TemporaryDirectory(prefix="afterclick-report-") as folder:
        registry.files(run_id, report.write(Path(folder) / "report", figures).parent)
    registry.finish(run_id)
    return run_id


def evaluate(
    split: EvaluationSplit, models: ModelTrainer, users: int, *, reduced: bool = False
) -> EvaluationResult:
    """Fit on the rows before the cut and query about the rows after it, `users` at most per
    protocol.

    Raises BadInput if there is too little past for a ranker.
    """
    start = time.perf_counter()
    past, seed, config = split.train, models.config.als.seed, models.config
    ranker = _fit_ranker(split, models)
    model = align(models.fit(past, "evaluation").model, split.rows.item_ids)
    inputs = ScorerInputs(
        model, BoosterRanker.of(ranker.text), ncf(past, config.min_interactions, seed)
    )
    fitted = time.perf_counter()

    def make(eligible: BoolArray) -> Mapping[str, Scorer]:
        return scorers(inputs, eligible, reduced=reduced)

    answers = answer_all(split, make, users, seed)
    facts = item_facts(split, _unit(model.factors) if model.factors is not None else None)
    all_ranked = {"cold_items": replace(facts, n_ranked=len(model))}
    measured = {p: measure(found, all_ranked.get(p, facts)) for p, found in answers.items()}
    names = next(iter(measured.values()))
    figures = {
        "recipe": config.parameters() | {"ncf": {"decay": NCF_DECAY, "epochs": NCF_EPOCHS}},
        "split": _split_facts(split, answers, config.ranker.horizon_days),
        "models": {name: {p: measured[p][name] for p in measured} for name in names},
        "segments": segments(split, answers["live"]),
        "clicks": simulate(answers["live"]),
        "freshness": {name: freshness(answers["live"], answers["frozen"], name) for name in names},
        "blend": {
            "questions": ranker.queries,
            "candidate_recall": ranker.candidate_recall,
            "importance": ranker.importance,
        },
        "seconds": {"fit": round(fitted - start, 1), "ask": round(time.perf_counter() - fitted, 1)},
    }
    return EvaluationResult(split, answers, figures)


def _fit_ranker(split: EvaluationSplit, models: ModelTrainer) -> FittedRanker:
    trusted = split.trusted[split.rows.time_ms < split.cut_ms]
    try:
        return models.fit_ranker(split.train, trusted)
    except TooFewInteractions as error:
        raise BadInput(
            f"cannot evaluate the blend: {error}; give more interactions or a later --cut"
        ) from None


def answer_all(
    split: EvaluationSplit, make: MakeScorers, users: int | None = None, seed: int = 42
) -> dict[str, Answers]:
    """Protocol → the lists of every scorer, on at most `users` queries each.

    `cold_items` ranks every item; the other protocols rank those with enough interactions.
    """
    live = sample(queries(split, "live"), users, seed)
    found = {}
    for protocol in PROTOCOLS:
        which = split.of_every_item if protocol == "cold_items" else split
        rankings = {
            name: FullRanking(scorer, which.eligible, seed)
            for name, scorer in make(which.eligible).items()
        }
        chosen = _sampled(split, protocol, live, users, seed)
        found[protocol] = answer(split.rows, chosen, rankings)
    return found


def _sampled(
    split: EvaluationSplit, protocol: str, live: Queries, users: int | None, seed: int
) -> Queries:
    """`frozen` and `trends` query the same users as `live`, so that their difference is paired."""
    found = queries(split, protocol)
    if protocol in ("live", "frozen", "trends"):
        return found.where(np.isin(found.user, live.user))
    return sample(found, users, seed)


def item_facts(split: EvaluationSplit, vectors: FloatArray | None) -> ItemFacts:
    """Facts of the training rows; `vectors` (n_items, d) of length 1 or 0 measure diversity."""
    past = split.train
    n_items = len(split.rows.item_ids)
    return ItemFacts(
        counts=past.item_counts(),
        vectors=np.zeros((n_items, 1), np.float32) if vectors is None else vectors,
        n_ranked=int(split.eligible.sum()),
        n_users=len(np.unique(past.user)),
        profiles=list_metrics.profile_popularity(past.user, past.item, len(past.user_ids)),
    )


def cut_of(rows: Interactions, day: str | None, option: str = "--cut") -> int:
    """The first test moment, ms. Raises BadInput for a day that leaves no past or no future."""
    if day is None:
        return _default_cut(rows)
    try:
        cut = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000)
    except ValueError:
        raise BadInput(f"{option} {day!r}: expected a day as yyyy-mm-dd") from None
    if not rows.time_ms[0] < cut <= rows.time_ms[-1]:
        first, last = _day(rows.time_ms[0]), _day(rows.time_ms[-1])
        raise BadInput(f"{option} {day}: the interactions run from {first} to {last}")
    return cut


def _default_cut(rows: Interactions) -> int:
    """The first of the last month with 5 % of the rows after it; in a shorter log the day that
    leaves 8 %."""
    moment = datetime.fromtimestamp(
        int(rows.time_ms[int(len(rows) * (1 - _MIN_TEST_SHARE))]) / 1000, UTC
    )
    cut = int(moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp() * 1000)
    if np.searchsorted(rows.time_ms, cut) >= 0.5 * len(rows):
        return cut
    late = int(rows.time_ms[int(len(rows) * 0.92)])
    midnight = late // int(DAY_MS) * int(DAY_MS)
    return midnight if rows.time_ms[0] < midnight else late


def split_of(
    settings: Settings, dataset: Path | None, cut: str | None, end: str | None = None
) -> tuple[EvaluationSplit, Reviews]:
    """The interactions before the day `end`, cut at a day. Raises BadInput, BadDataset."""
    data = _data(settings, dataset)
    if end is not None:
        early = data.rows.time_ms < cut_of(data.rows, end, "--end")
        data = replace(data, rows=data.rows.where(early), trusted=data.trusted[early])
    rows = data.rows
    return EvaluationSplit(rows, cut_of(rows, cut), int(rows.time_ms[-1]) + 1, data.trusted), data


def _data(settings: Settings, dataset: Path | None) -> Reviews:
    if dataset is not None:
        return reviews.load(dataset, settings.stream.weights[Action.REVIEW])
    _, tables = workspace.latest(settings.home / "etl", "pipeline etl")
    return reviews.from_etl(tables, interactions.load_catalogue(tables))


def _split_facts(
    split: EvaluationSplit, answers: dict[str, Answers], horizon_days: int
) -> dict[str, Any]:
    valid_from = split.cut_ms - horizon_days * int(DAY_MS)
    times = split.rows.time_ms
    return {
        "cut": _day(split.cut_ms),
        "end": _day(split.end_ms),
        "train": int(np.searchsorted(times, split.cut_ms)),
        "valid": int(np.searchsorted(times, split.cut_ms) - np.searchsorted(times, valid_from)),
        "test": len(split.test()),
        "items": int(split.eligible.sum()),
        "users": {protocol: len(found.queries) for protocol, found in answers.items()},
    }


def _unit(vectors: FloatArray) -> FloatArray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0), np.float32)


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(int(time_ms) / 1000, UTC).date().isoformat()


def _print(console: Console, figures: dict[str, Any]) -> None:
    split = figures["split"]
    table = Table(
        title=f"cut {split['cut']}: {split['train']:,} rows before, {split['items']:,} items ranked"
    )
    for column in ("protocol", "model", *_SHOWN):
        table.add_column(column, justify="left" if column in ("protocol", "model") else "right")
    for protocol, users in split["users"].items():
        for name, measured in figures["models"].items():
            cells = [_cell(measured[protocol][m]) for m in _SHOWN]
            table.add_row(f"{protocol} ({users:,})", name, *cells)
        table.add_section()
    console.print(table)
    gain = figures["freshness"]["blend"]
    if gain["hr@10"] is not None:
        low, high = gain["hr@10_interval"]
        line = f"{gain['hr@10']:+.4f} [{low:+.4f}, {high:+.4f}]"
        console.print(f"freshness: HR@10 of the blend, live minus frozen: {line}")


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

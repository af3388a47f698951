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
import structlog
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from afterclick.arrays import BoolArray, FloatArray
from afterclick.errors import BadInput
from afterclick.model import Model
from afterclick.settings import Settings
from afterclick.trends import DAY_MS
from training import interactions, ranker, workspace
from training.config import ModelConfig, ReplayConfig
from training.evaluation import list_metrics, report, reviews
from training.evaluation.list_analysis import segments, simulate
from training.evaluation.measure import (
    Answers,
    FullRanking,
    ItemFacts,
    Scorer,
    accuracy,
    answer,
    freshness,
    measure,
)
from training.evaluation.reviews import Reviews
from training.evaluation.scorers import (
    SEED_DEPENDENT,
    ScorerInputs,
    scorers,
)
from training.event_log import EventLog
from training.fit import ModelTrainer, trainer
from training.graph_replay import GraphReplay
from training.interactions import TooFewInteractions
from training.mlflow_registry import MlflowRegistry
from training.models.transition_graph import transition_graph
from training.protocols import EVERY_ITEM, PROTOCOLS, EvaluationSplit, queries, sample
from training.query_replay import align
from training.ranker import FittedRanker, RankerExamples

log = structlog.get_logger()
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
    users: int | None = None
    """Queries of each protocol at most; None: all."""
    seeds: int = 3
    """Models fitted, with different seeds; figures are means over them."""
    preset: str | None = None
    engine: str | None = None
    report: Path | None = None
    record: bool = False
    reduced: bool = False
    json: bool = False

    @property
    def options(self) -> EvaluationOptions:
        return EvaluationOptions(self.users, self.seeds, self.reduced)


@dataclass(frozen=True)
class EvaluationResult:
    """The lists of every scorer, and the figures that are printed."""

    split: EvaluationSplit
    answers: dict[str, list[Answers]]
    """protocol → the answers of each seed"""
    figures: dict[str, Any]


def run(settings: Settings, request: EvaluationRequest) -> EvaluationResult:
    """Evaluate and print the table; with `json`, the figures as one JSON object."""
    console = Console(stderr=request.json)
    config = ModelConfig.of(settings, request.preset, request.engine)
    with console.status("reading the interactions"):
        split, data = split_of(settings, request.dataset, request.cut, request.end)
    with (
        console.status("fitting every model as of the cut, and the ranker on earlier cuts"),
        trainer(settings, data.texts, config) as models,
    ):
        result = evaluate(split, models, request.options)
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
        "users": request.users or "all",
        "seeds": request.seeds,
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


@dataclass(frozen=True)
class EvaluationOptions:
    """The extent of an evaluation."""

    users: int | None = None
    """Queries of each protocol at most; None: all."""
    seeds: int = 1
    """Models fitted, with different seeds."""
    reduced: bool = False
    """Also ask the blend under load shedding."""


def evaluate(
    split: EvaluationSplit, models: ModelTrainer, options: EvaluationOptions | None = None
) -> EvaluationResult:
    """Fit on the events before the cut and query about those after it, with each seed.

    A seed varies the model, NCF and the ranker's trees; all rankers learn from the same examples.
    Raises BadInput if there is too little past for a ranker.
    """
    options = options or EvaluationOptions()
    start = time.perf_counter()
    examples = _ranker_examples(split, models)
    fits = [_ask(split, models, examples, number, options) for number in range(options.seeds)]
    answers = {p: [each.answers[p] for each in fits] for p in PROTOCOLS}
    figures = _figures(split, models.config, fits, answers)
    return EvaluationResult(
        split, answers, figures | {"seconds": round(time.perf_counter() - start, 1)}
    )


def _ranker_examples(split: EvaluationSplit, models: ModelTrainer) -> RankerExamples:
    try:
        return models.ranker_examples(split.log.before(split.cut_ms))
    except TooFewInteractions as error:
        raise BadInput(
            f"cannot evaluate the blend: {error}; give more interactions or a later --cut"
        ) from None


@dataclass(frozen=True)
class _SeedResult:
    """The answers of the models of one seed."""

    answers: dict[str, Answers]
    model: Model
    ranker: FittedRanker


def _ask(
    split: EvaluationSplit,
    models: ModelTrainer,
    examples: RankerExamples,
    number: int,
    options: EvaluationOptions,
) -> _SeedResult:
    """Fit and ask with one seed; from the second on only the scorers that depend on it."""
    config = models.config.with_seed(models.config.als.seed + number)
    fitted = replace(models, config=config).fit(split.log.before(split.cut_ms), "evaluation")
    model, learned = align(fitted.model, split.log.item_ids), ranker.learn(examples, config.ranker)
    inputs = ScorerInputs(
        model,
        learned.trees,
        transition_graph(split.train),
        GraphReplay(model, split.log, split.cut_ms),
    )

    def make(eligible: BoolArray) -> Mapping[str, Scorer]:
        found = scorers(inputs, eligible, reduced=options.reduced)
        return {name: found[name] for name in found if not number or name in SEED_DEPENDENT}

    answers = answer_all(split, make, options.users, config.replay)
    hits = {
        p: round(float(accuracy([found], "blend")["hr@10"].mean()), 4)
        for p, found in answers.items()
        if len(found.queries)
    }
    log.info("seed evaluated", seed=config.als.seed, **hits)
    return _SeedResult(answers, model, learned)


def _figures(
    split: EvaluationSplit,
    config: ModelConfig,
    fits: list[_SeedResult],
    answers: dict[str, list[Answers]],
) -> dict[str, Any]:
    first = fits[0]
    factors = first.model.factors
    facts = item_facts(split, _unit(factors) if factors is not None else None)
    every = replace(facts, n_ranked=len(first.model))
    measured = {
        p: measure(found, every if p in EVERY_ITEM else facts) for p, found in answers.items()
    }
    names = next(iter(measured.values()))
    return {
        "recipe": config.parameters(),
        "seeds": len(fits),
        "split": _split_facts(split, first.answers, config.ranker.horizon_days),
        "models": {name: {p: measured[p][name] for p in measured} for name in names},
        "segments": segments(split, first.answers["live"]),
        "clicks": simulate(first.answers["live"]),
        "freshness": {name: freshness(answers, name) for name in names},
        "blend": {
            "questions": first.ranker.queries,
            "candidate_recall": first.ranker.candidate_recall,
            "importance": first.ranker.importance,
            "times_decayed_popularity": _ratio(measured["live"]),
        },
    }


def _ratio(live: dict[str, dict[str, Any]]) -> float | None:
    """HR@10 of the blend on `live`, as a multiple of decayed popularity's."""
    base, blend = live["decayed_popularity"]["hr@10"], live["blend"]["hr@10"]
    return blend / base if base else None


def answer_all(
    split: EvaluationSplit,
    make: MakeScorers,
    users: int | None = None,
    known: ReplayConfig | None = None,
) -> dict[str, Answers]:
    """Protocol → the lists of every scorer, on at most `users` queries each.

    Protocols of EVERY_ITEM rank every item; the others rank those with enough interactions.
    """
    found: dict[str, Answers] = {}
    chosen = {p: sample(queries(split, p), users, _SAMPLE_SEED) for p in SAMPLED}
    for protocol in PROTOCOLS:
        asked = queries(split, protocol)
        like = _SAMPLED_LIKE.get(protocol)
        if like is not None:  # the same users, so that differences are paired
            asked = asked.where(np.isin(asked.user, chosen[like].user))
        elif protocol in SAMPLED:
            asked = chosen[protocol]
        whole = _SUBSETS.get(protocol)
        if whole is not None:
            found[protocol] = found[whole].of(asked)
            continue
        which = split.of_every_item if protocol in EVERY_ITEM else split
        rankings = {
            name: FullRanking(scorer, which.eligible, _SAMPLE_SEED)
            for name, scorer in make(which.eligible).items()
        }
        with threadpool_limits(1, "blas"):  # short products: threads would wait for one another
            found[protocol] = answer(split.log, asked, rankings, known=known)
    return found


_SAMPLE_SEED = 42
SAMPLED = ("returning", "live", "live_later_day", "back", "cold", "live_all")
"""Protocols whose users are drawn by themselves."""
_SAMPLED_LIKE = dict.fromkeys(("trends", "nightly", "frozen"), "live")
_SUBSETS = {"live_same_day": "live", "live_later": "live", "cold_items": "live_all"}
"""Protocols whose answers are part of those of another one."""


def item_facts(split: EvaluationSplit, vectors: FloatArray | None) -> ItemFacts:
    """Facts of the training rows; `vectors` (n_items, d) of length 1 or 0 measure diversity."""
    past = split.train
    n_items = len(split.log.item_ids)
    return ItemFacts(
        counts=past.item_counts(),
        vectors=np.zeros((n_items, 1), np.float32) if vectors is None else vectors,
        n_ranked=int(split.eligible.sum()),
        n_users=len(np.unique(past.user)),
        profiles=list_metrics.profile_popularity(past.user, past.item, len(past.user_ids)),
    )


def cut_of(log: EventLog, day: str | None, option: str = "--cut") -> int:
    """The first test moment, ms. Raises BadInput for a day that leaves no past or no future."""
    if day is None:
        return _default_cut(log)
    try:
        cut = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000)
    except ValueError:
        raise BadInput(f"{option} {day!r}: expected a day as yyyy-mm-dd") from None
    if not log.time_ms[0] < cut <= log.time_ms[-1]:
        first, last = day_of(log.time_ms[0]), day_of(log.time_ms[-1])
        raise BadInput(f"{option} {day}: the interactions run from {first} to {last}")
    return cut


def _default_cut(log: EventLog) -> int:
    """The first of the last month with 5 % of the rows after it; in a shorter log the day that
    leaves 8 %."""
    moment = datetime.fromtimestamp(
        int(log.time_ms[int(len(log) * (1 - _MIN_TEST_SHARE))]) / 1000, UTC
    )
    cut = int(moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp() * 1000)
    if np.searchsorted(log.time_ms, cut) >= 0.5 * len(log):
        return cut
    late = int(log.time_ms[int(len(log) * 0.92)])
    midnight = late // int(DAY_MS) * int(DAY_MS)
    return midnight if log.time_ms[0] < midnight else late


def split_of(
    settings: Settings, dataset: Path | None, cut: str | None, end: str | None = None
) -> tuple[EvaluationSplit, Reviews]:
    """The interactions before the day `end`, cut at a day. Raises BadInput, BadDataset."""
    data = interactions_of(settings, dataset)
    if end is not None:
        data = replace(data, log=data.log.before(cut_of(data.log, end, "--end")))
    log = data.log
    return EvaluationSplit(log, cut_of(log, cut), int(log.time_ms[-1]) + 1), data


def interactions_of(settings: Settings, dataset: Path | None) -> Reviews:
    """A dataset, or else the tables of the ETL. Raises BadDataset, MissingStep."""
    if dataset is not None:
        return reviews.load(dataset, settings.stream.signals)
    _, tables = workspace.latest(settings.home / "etl", "pipeline etl")
    return reviews.from_etl(tables, interactions.load_catalogue(tables))


def _split_facts(
    split: EvaluationSplit, answers: dict[str, Answers], horizon_days: int
) -> dict[str, Any]:
    valid_from = split.cut_ms - horizon_days * int(DAY_MS)
    times = split.log.time_ms
    return {
        "cut": day_of(split.cut_ms),
        "end": day_of(split.end_ms),
        "train": int(np.searchsorted(times, split.cut_ms)),
        "valid": int(np.searchsorted(times, split.cut_ms) - np.searchsorted(times, valid_from)),
        "test": int(split.test.start[-1]),
        "items": int(split.eligible.sum()),
        "users": {protocol: len(found.queries) for protocol, found in answers.items()},
    }


def _unit(vectors: FloatArray) -> FloatArray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0), np.float32)


def day_of(time_ms: int) -> str:
    """The day (UTC) of a time, yyyy-mm-dd."""
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
    for part, gain in figures["freshness"]["blend"]["parts"].items():
        if gain["hr@10"] is not None:
            low, high = gain["hr@10_interval"]
            line = f"{gain['hr@10']:+.4f} [{low:+.4f}, {high:+.4f}]"
            console.print(f"freshness, {part.replace('_', ' ')}: HR@10 of the blend {line}")


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

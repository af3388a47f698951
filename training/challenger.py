"""A trained model that waits for the gate: its files, metadata, evaluation and report.

writes  artifact  <home>/challengers/<version>/model
        artifact  <home>/challengers/<version>/holdout_model   trained without the holdout
        json      <home>/challengers/<version>/run.json, evaluation.json
        mlflow    the challenger's run: parameters, metrics, model files, signature, report
        files     <home>/challengers/<version>/report/report.md, comparison.png

The holdout models of champions are kept in <home>/holdout_models/<version>: the next challenger is
compared with those of champion and anchor on interactions that none of them has seen.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from afterclick import artifact
from afterclick.arrays import FloatArray
from afterclick.model import TowerArrays
from afterclick.tree_ranker import FILE, TreeRanker
from training import ann_index
from training.evaluation.holdout import FinalCheck
from training.evaluation.list_choices import ListChoices
from training.fit import FittedModel
from training.gate import Comparison, Verdict
from training.mlflow_registry import MlflowRegistry, flatten
from training.workspace import MissingStep

HOLDOUT_MODELS = "holdout_models"
"""Folder in the home with the holdout models of published versions."""
BOOTSTRAP = "-first"
"""Ends the version of a bootstrap model, which is published without an evaluation."""
_RUN, _EVALUATION = "run.json", "evaluation.json"


class RunMetadata(BaseModel):
    """Settings and origin of a training run."""

    model_config = ConfigDict(frozen=True)

    version: str
    cut_ms: int
    """event time from which interactions belong to the holdout"""
    parameters: dict[str, Any]
    lineage: dict[str, Any]
    """etl, positions (topic/partition → highest offset), rows, newest_ms, data, commit"""
    seconds: dict[str, float]

    def tags(self, version: str) -> dict[str, str]:
        """The lineage as MLflow tags of a version."""
        return {name: str(value) for name, value in self.lineage.items()} | {"version": version}

    def write(self, folder: Path) -> None:
        (folder / _RUN).write_text(self.model_dump_json(indent=1))

    @classmethod
    def read(cls, folder: Path) -> RunMetadata:
        """The metadata of the challenger in `folder`."""
        return cls.model_validate_json((folder / _RUN).read_text())


class Evaluation(BaseModel):
    """Metrics of a challenger on the holdout and the gate's decision."""

    model_config = ConfigDict(frozen=True)

    questions: int
    from_ms: int = 0
    """event time from which the questions come"""
    metrics: dict[str, float]
    """protocol.metric → mean over the queries"""
    against: dict[str, dict[str, float]]
    """`trends`, `champion`, `anchor`: their metrics on the same queries"""
    champion: str | None
    """version of the champion at the time of the evaluation"""
    passed: bool
    """the challenger may be published"""
    verdict: Verdict
    reason: str
    comparisons: list[Comparison] = []
    detectable_loss: float | None = None
    """relative loss against the champion (without one, trends) found with a probability of 80 %"""
    own_share: float | None = None
    """share of the questions with a target from the champion's own lists"""
    final: FinalCheck | None = None
    lists: ListChoices | None = None
    """how the models rank the choices of users in the lists of that period"""
    new_anchor: bool = False
    """the challenger becomes the anchor when it is published"""

    def write(self, folder: Path) -> None:
        (folder / _EVALUATION).write_text(self.model_dump_json(indent=1))

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """The evaluation of the challenger in `folder`. Raises MissingStep before `eval`."""
        path = folder / _EVALUATION
        if not path.is_file():
            raise MissingStep(
                f"{folder.name} has no evaluation: run `afterclick pipeline eval` first"
            )
        return cls.model_validate_json(path.read_text())


def write_model(
    root: Path, version: str, fitted: FittedModel, ranker: TreeRanker | None, run: RunMetadata
) -> Path:
    """Write a model, its FAISS indexes and its ranker as the artifact `root/version`."""
    model = fitted.model
    indexes, reports = _indexes(fitted)

    def fill(folder: Path) -> None:
        model.save(folder)
        for name, index in indexes.items():
            ann_index.write(index, folder, name)
        if ranker is not None:
            ranker.write(folder / FILE)

    return artifact.write(
        root,
        version,
        fill,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        items=len(model),
        cut_ms=run.cut_ms,
        parameters=run.parameters | model.parameters() | reports,
        lineage=run.lineage,
    )[0]


def _indexes(fitted: FittedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """File name → FAISS index, and parameter name → report of its recall."""
    model, indexes, reports = fitted.model, {}, {}
    if model.factors is not None:
        indexes[ann_index.FILE], report = ann_index.make(
            model.factors, fitted.user_factors, model.rated
        )
        reports["index"] = report.facts()
    if model.towers is not None:
        indexes[ann_index.TOWERS], report = ann_index.make(
            model.towers.targets, _users_of_one_item(model.towers), model.towers.known
        )
        reports["tower_index"] = report.facts()
    if model.ncf is not None:
        width = model.ncf.targets.shape[1] - 1
        queries = ann_index.unit(model.ncf.history[:500, :width])
        queries = np.pad(queries, ((0, 0), (0, 1)), constant_values=1.0)
        indexes[ann_index.NCF], report = ann_index.make(model.ncf.targets, queries, model.ncf.known)
        reports["ncf_index"] = report.facts()
    if model.content is not None and (index := ann_index.of_content(model.content)) is not None:
        indexes[ann_index.CONTENT] = index
    return indexes, reports


def _users_of_one_item(towers: TowerArrays, n: int = 500) -> FloatArray:
    """(≤ n, d + 1) vectors of users whose history is one item, bought now."""
    items = np.flatnonzero(towers.known)[:n].astype(np.int32)
    one, now = np.ones(1, np.float32), np.zeros(1)
    users = (towers.user(items[i : i + 1], one, now, 0.0) for i in range(len(items)))
    return np.array([user for user in users if user is not None], np.float32)


def copy_model(source: Path, root: Path, version: str, metrics: dict[str, float]) -> Path:
    """Copy an artifact to `root/version` and add metrics to its manifest; an existing one stays."""
    manifest = artifact.read_manifest(source)
    artifact.verify(source, manifest)

    def fill(folder: Path) -> None:
        for name in manifest.files:
            shutil.copyfile(source / name, folder / name)

    if not (root / version).exists():
        facts = manifest.model_dump(include={"created", "items", "cut_ms", "parameters", "lineage"})
        artifact.write(root, version, fill, metrics=metrics, **facts)
    return root / version


def differences(first_folder: Path, second_folder: Path) -> dict[str, Any]:
    """Compare two artifacts. Raises BadArtifact if one is damaged.

    `parameters` and `lineage` hold [first, second] of each value that differs; `metrics` holds all
    values with their change.
    """
    first, second = _verified(first_folder), _verified(second_folder)
    items, other_items = (
        set(artifact.load_array(folder, "item_ids").tolist())
        for folder in (first_folder, second_folder)
    )
    return {
        "versions": [first.version, second.version],
        "parameters": _changed(flatten(first.parameters), flatten(second.parameters)),
        "metrics": _metric_changes(first.metrics, second.metrics),
        "lineage": _changed(flatten(first.lineage), flatten(second.lineage)),
        "items": {
            "both": len(items & other_items),
            "only_first": len(items - other_items),
            "only_second": len(other_items - items),
        },
        "files": sorted(first.files.keys() ^ second.files.keys()),
    }


def _verified(folder: Path) -> artifact.Manifest:
    manifest = artifact.read_manifest(folder)
    artifact.verify(folder, manifest)
    return manifest


def _changed(first: dict[str, Any], second: dict[str, Any]) -> dict[str, list[Any]]:
    pairs = {
        name: [first.get(name), second.get(name)] for name in sorted(first.keys() | second.keys())
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _metric_changes(
    first: dict[str, float], second: dict[str, float]
) -> dict[str, dict[str, float | None]]:
    changes: dict[str, dict[str, float | None]] = {}
    for name in sorted(first.keys() | second.keys()):
        a, b = first.get(name), second.get(name)
        change = None if a is None or b is None else round(b - a, 6)
        changes[name] = {"first": a, "second": b, "change": change}
    return changes


_COLOURS = {
    "this model": "#3bb273",
    "champion": "#5b8def",
    "anchor": "#e6a23c",
    "trends": "#9aa5b1",
}


def log_run(
    registry: MlflowRegistry, folder: Path, run: RunMetadata, evaluation: Evaluation
) -> str:
    """The id of a challenger's MLflow run, created on the first call."""
    known = folder / "mlflow_run"
    if known.is_file():
        return known.read_text()
    run_id = registry.start(run.version, run.parameters, run.tags(run.version))
    against = {
        f"{name}.{metric}": value
        for name, metrics in evaluation.against.items()
        for metric, value in metrics.items()
    }
    seconds = {f"seconds.{step}": value for step, value in run.seconds.items()}
    registry.metrics(run_id, evaluation.metrics | against | seconds | _gate_metrics(evaluation))
    registry.files(run_id, folder / "model")
    registry.log_signature(run_id)
    write_report(folder / "report", run, evaluation)
    registry.files(run_id, folder / "report")
    known.write_text(run_id)
    return run_id


def _gate_metrics(evaluation: Evaluation) -> dict[str, float]:
    """gate.<other model>.<figure> of each comparison that could be made."""
    return {
        f"gate.{comparison.other}.{name}": value
        for comparison in evaluation.comparisons
        for name, value in (
            ("difference", comparison.difference),
            ("detectable_loss", comparison.detectable_loss),
        )
        if value is not None
    }


def write_report(folder: Path, run: RunMetadata, evaluation: Evaluation) -> Path:
    """Write report.md and a chart of the metrics; returns the report's path."""
    folder.mkdir(parents=True, exist_ok=True)
    models = {"this model": evaluation.metrics, **evaluation.against}
    if evaluation.metrics:
        _chart(models, folder / "comparison.png")
    path = folder / "report.md"
    path.write_text("\n".join(_report_lines(run, evaluation, models)) + "\n")
    return path


def _report_lines(
    run: RunMetadata, evaluation: Evaluation, models: dict[str, dict[str, float]]
) -> list[str]:
    names = sorted({name for metrics in models.values() for name in metrics})
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in run.seconds.items())
    settings = flatten(run.parameters) | flatten(run.lineage)
    return [
        f"# Model {run.version}",
        "",
        f"**{evaluation.verdict.capitalize()}**: {evaluation.reason}.",
        "",
        f"{evaluation.questions:,} queries on the holdout, which no compared model has seen; "
        f"{evaluation.own_share or 0:.1%} of them have a target from the champion's own lists.",
        "",
        *_final_lines(evaluation.final),
        "",
        *(["![Metrics of the compared models](comparison.png)", ""] if names else []),
        _table_row("metric", *models),
        "|---|" + "---|" * len(models),
        *(_table_row(name, *(_cell(m.get(name)) for m in models.values())) for name in names),
        "",
        "## Settings and origin",
        "",
        f"Duration: {seconds or 'not measured'}.",
        "",
        "| | |",
        "|---|---|",
        *(_table_row(name, str(value)) for name, value in settings.items()),
    ]


def _final_lines(final: FinalCheck | None) -> list[str]:
    """How the final model compares with its holdout model."""
    if final is None:
        return []
    parts = ", ".join(
        f"{part} {ours:.2f} ({holdout:.2f})" for part, (ours, holdout) in final.parts.items()
    )
    return [
        f"The final model and its holdout model share {final.overlap:.0%} of the first ten items. "
        f"Share of the candidates that a part ranks below the target, and the same in the holdout "
        f"model: {parts or 'no queries'}.",
        "",
    ]


def _table_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _chart(models: dict[str, dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    names = [name for name in sorted(models["this model"]) if name.endswith(("hr@10", "ndcg@10"))]
    figure = Figure(figsize=(8, 3.5))
    axes = figure.subplots()
    width = 0.8 / len(models)
    for n, (label, metrics) in enumerate(models.items()):
        x = np.arange(len(names)) + (n - (len(models) - 1) / 2) * width
        values = [metrics.get(name, 0.0) for name in names]
        axes.bar(x, values, width, label=label, color=_COLOURS[label])
    axes.set_xticks(range(len(names)), names)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120, bbox_inches="tight")

"""The record of a challenger: its MLflow run and a report with the gate's decision.

writes  mlflow  the challenger's run: parameters, metrics, model files, signature, report
        files   <home>/challengers/<version>/report/report.md, comparison.png
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.challenger import Evaluation, RunMetadata
from training.evaluation.final_check import FinalCheck
from training.mlflow_registry import MlflowRegistry, flatten

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

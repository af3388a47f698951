"""The report of one training run: the verdict, figures beside what they were compared with, settings.

writes  <folder>/report.md, comparison.png
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from training.challenger import Evaluation, RunMetadata, flat

_COLOURS = {"this model": "#3bb273", "champion": "#5b8def", "trends": "#9aa5b1"}


def write(folder: Path, facts: RunMetadata, evaluation: Evaluation) -> Path:
    """Write the report; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    judged = {"this model": evaluation.metrics, **evaluation.against}
    if evaluation.metrics:
        _picture(judged, folder / "comparison.png")
    path = folder / "report.md"
    path.write_text("\n".join(_lines(facts, evaluation, judged)) + "\n")
    return path


def _lines(
    facts: RunMetadata, evaluation: Evaluation, judged: dict[str, dict[str, float]]
) -> list[str]:
    names = sorted({name for figures in judged.values() for name in figures})
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in facts.seconds.items())
    return [
        f"# Model {facts.version}",
        "",
        f"**{'Passed' if evaluation.passed else 'Refused'}**: {evaluation.reason}.",
        "",
        f"{evaluation.questions:,} questions about the newest interactions, which neither model had seen.",
        "",
        *(["![Beside the champion and plain trends](comparison.png)", ""] if names else []),
        "| metric | " + " | ".join(judged) + " |",
        "|---|" + "---|" * len(judged),
        *(
            f"| {name} | " + " | ".join(_cell(f.get(name)) for f in judged.values()) + " |"
            for name in names
        ),
        "",
        "## How it came about",
        "",
        f"Seconds: {seconds or 'not measured'}.",
        "",
        "| | |",
        "|---|---|",
        *(
            f"| {name} | {value} |"
            for name, value in (flat(facts.parameters) | flat(facts.lineage)).items()
        ),
    ]


def _picture(judged: dict[str, dict[str, float]], path: Path) -> None:
    names = [name for name in sorted(judged["this model"]) if name.endswith(("hr@10", "ndcg@10"))]
    figure = Figure(figsize=(8, 3.5))
    axes = figure.subplots()
    width = 0.8 / len(judged)
    for n, (who, figures) in enumerate(judged.items()):
        place = np.arange(len(names)) + (n - (len(judged) - 1) / 2) * width
        values = [figures.get(name, 0.0) for name in names]
        axes.bar(place, values, width, label=who, color=_COLOURS.get(who, "#e6a23c"))
    axes.set_xticks(range(len(names)), names)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

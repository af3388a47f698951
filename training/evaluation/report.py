"""An evaluation as Markdown with charts.

writes  <folder>/report.md, hit_rate.png, segments.png, importance.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLUMNS = (
    "hr@10",
    "hr@20",
    "ndcg@10",
    "recall@20",
    "mrr",
    "coverage@10",
    "gini@10",
    "diversity@10",
    "novelty@10",
    "popularity_lift@10",
)
_COLOURS = {
    "popularity": "#c2c9d1",
    "decayed_popularity": "#7b8794",
    "item_item": "#e6a23c",
    "als": "#5b8def",
    "ncf": "#d64550",
    "sequence": "#8e6bbf",
    "content": "#d9a5c7",
    "blend": "#1f8f57",
    "blend_brief": "#9bd6b6",
}
Result = dict[str, Any]


def write(folder: Path, result: Result) -> Path:
    """Write the report of what `afterclick evaluate` printed; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    _hit_rates(result).savefig(folder / "hit_rate.png", dpi=130, bbox_inches="tight")
    _segments(result).savefig(folder / "segments.png", dpi=130, bbox_inches="tight")
    _importance(result).savefig(folder / "importance.png", dpi=130, bbox_inches="tight")
    path = folder / "report.md"
    path.write_text("\n".join(_lines(result)) + "\n")
    return path


def table(result: Result) -> list[str]:
    """The Markdown table of all models and protocols; intervals beside HR@10 and NDCG@10."""
    lines = [
        "| protocol | users | model | " + " | ".join(_COLUMNS) + " |",
        "|---|---|---|" + "---|" * len(_COLUMNS),
    ]
    for protocol, users in result["split"]["users"].items():
        for name, measured in result["models"].items():
            cells = " | ".join(_cell(measured[protocol], column) for column in _COLUMNS)
            lines.append(f"| {protocol} | {users:,} | {name} | {cells} |")
    return lines


def _lines(result: Result) -> list[str]:
    split, gain = result["split"], result["freshness"]["blend"]
    return [
        "# Evaluation",
        "",
        f"Cut {split['cut']}, last day {split['end']}. "
        f"{split['train']:,} interactions before the cut, {split['items']:,} items ranked in full; "
        "without seen items, ties broken at random. "
        "Brackets: 95 % bootstrap interval over users.",
        "",
        *table(result),
        "",
        "![Hit rate by protocol](hit_rate.png)",
        "",
        f"**Freshness.** The live event and live trends add {_signed(gain, 'hr@10')} HR@10 to the "
        "blend (the same users and targets, `live` minus `frozen`).",
        "",
        "## By segment",
        "",
        "![Hit rate by segment](segments.png)",
        "",
        "## Expected clicks and purchases",
        "",
        *_clicks(result["clicks"]),
        "",
        "## Feature importance of the blend",
        "",
        "![Share of the gain by feature](importance.png)",
    ]


def _clicks(simulated: Result) -> list[str]:
    lines = [
        *_assumptions(simulated["assumptions"]),
        "",
        "| model | click lift | purchase lift | " + " | ".join(simulated["sensitivity"]) + " |",
        "|---|---|---|" + "---|" * len(simulated["sensitivity"]),
    ]
    for name, earned in simulated["lists"].items():
        other = " | ".join(f"{by_name[name]:+.0%}" for by_name in simulated["sensitivity"].values())
        lifts = f"{_lift(earned, 'click_lift')} | {_lift(earned, 'purchase_lift')}"
        lines.append(f"| {name} | {lifts} | {other} |")
    return lines


def _assumptions(stated: Result) -> list[str]:
    weights = ", ".join(f"{weight:.2f}" for weight in stated["position_weights"])
    return [
        "Computed from assumptions about the `live` queries, not from clicks "
        "(training/evaluation/list_analysis.py):",
        "",
        f"- Ranks are examined with probability 1 / rank^{stated['eta']}: {weights}.",
        f"- An examined item is clicked with probability {stated['relevant']} if the user chose it "
        f"next, else {stated['other']}; a click becomes a purchase with probability "
        f"{stated['buy']}, else {stated['buy_other']}.",
        f"- Base: {stated['base']}.",
        f"- Click lift: {stated['click_lift']}.",
        f"- Purchase lift: {stated['purchase_lift']}.",
    ]


def _hit_rates(result: Result) -> Figure:
    names, protocols = list(result["models"]), list(result["split"]["users"])
    figure = Figure(figsize=(10, 4))
    axes = figure.subplots()
    groups = [[result["models"][name][p] for p in protocols] for name in names]
    _bars(axes, names, groups, protocols)
    axes.set_title("HR@10 by protocol")
    return figure


def _segments(result: Result) -> Figure:
    kinds = result["segments"]
    figure = Figure(figsize=(12, 4))
    panes = figure.subplots(1, len(kinds), sharey=True)
    for axes, (kind, found) in zip(np.atleast_1d(panes), kinds.items(), strict=True):
        names = list(result["models"])
        labels = [f"{label}\n({segment['users']:,})" for label, segment in found.items()]
        _bars(
            axes, names, [[segment[name] for segment in found.values()] for name in names], labels
        )
        axes.set_title(f"HR@10, live, by {'history' if kind == 'history' else 'age of the target'}")
        axes.tick_params(axis="x", labelsize=8)
    return figure


def _bars(axes: Axes, names: list[str], groups: list[list[Result]], labels: list[str]) -> None:
    width = 0.8 / len(names)
    for n, (name, measured) in enumerate(zip(names, groups, strict=True)):
        value = np.array([m["hr@10"] or 0.0 for m in measured])
        low, high = np.array([m["hr@10_interval"] or (0.0, 0.0) for m in measured]).reshape(-1, 2).T
        error = np.maximum([value - low, high - value], 0.0)
        x = np.arange(len(value)) + (n - (len(names) - 1) / 2) * width
        axes.bar(x, value, width, yerr=error, label=name, color=_COLOURS.get(name), capsize=2)
    axes.set_xticks(range(len(labels)), labels)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _importance(result: Result) -> Figure:
    shares = sorted(result["blend"]["importance"].items(), key=lambda pair: pair[1])
    figure = Figure(figsize=(7, 0.25 * len(shares) + 1))
    axes = figure.subplots()
    axes.barh([name for name, _ in shares], [share for _, share in shares], color=_COLOURS["als"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Share of the blend's gain")
    return figure


def _cell(measured: Result, column: str) -> str:
    value = measured[column]
    if value is None:
        return ""
    if column == "popularity_lift@10":
        return f"{value:+.2f}"
    digits = 2 if column.startswith("novelty") else 4
    text = f"{value:.{digits}f}"
    if column in ("hr@10", "ndcg@10"):
        low, high = measured[f"{column}_interval"]
        text += f" [{low:.3f}, {high:.3f}]"
    return text


def _signed(measured: Result, name: str) -> str:
    if measured[name] is None:
        return "(no queries)"
    low, high = measured[f"{name}_interval"]
    return f"{measured[name]:+.4f} [{low:+.4f}, {high:+.4f}]"


def _lift(earned: Result, name: str) -> str:
    interval = earned[f"{name}_interval"]
    if interval is None:
        return ""
    return f"{earned[name]:+.0%} [{interval[0]:+.0%}, {interval[1]:+.0%}]"

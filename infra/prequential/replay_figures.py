"""The figures of a walk: hit rate, NDCG and coverage, by day and by tier, and freshness curves.

Intervals: 95 %, by bootstrap, with users as the sampling units.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from afterclick.arrays import BoolArray, Float64Array
from afterclick.errors import BadInput
from infra.prequential.past_models import Retrain
from infra.prequential.replay_window import Window
from infra.prequential.serving_replay import LENGTH, Arm, Walk
from training.evaluation import list_metrics
from training.evaluation.time_split import day_of

METRICS = ("hr@10", "ndcg@10")
DELAYS_S = (0, 1, 60, 600, 3_600, 86_400)
"""Delays of the user's state in the curve."""
FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
_NAMES = {0: "0", 1: "1 s", 60: "1 min", 600: "10 min", 3_600: "1 h", 86_400: "1 day"}
_SEED = 42
_COLOUR, _BASE_COLOUR = "#1f8f57", "#c2c9d1"


def replay_figures(window: Window, walk: Walk, arm: Arm) -> dict[str, Any]:
    """What `replay-serving` prints."""
    lists, values = walk.lists[arm], metrics(walk, arm)
    everything = np.ones(len(walk.queries), bool)
    days = np.array([day_of(t) for t in walk.queries.now_ms.tolist()])
    tiers = np.array(lists.tier)
    by_day = [{"day": str(d), **_measures(walk, arm, values, days == d)} for d in np.unique(days)]
    counts = Counter(lists.version)
    return {
        **window.facts(),
        "days": len(by_day),
        "retrain": str(arm.retrain),
        **_measures(walk, arm, values, everything),
        **{f"{name}_interval": _interval(walk, values[name]) for name in METRICS},
        "by_tier": [
            {"tier": str(t), **_measures(walk, arm, values, tiers == t)} for t in np.unique(tiers)
        ],
        "by_day": by_day,
        "model_versions": [
            {
                "version": version or None,
                "trained_before": day_of(end) if version else None,
                "queries": counts[version],
            }
            for version, end in sorted(lists.end_ms.items())
        ],
        "leaks": int(lists.leaks.sum()),
    }


def freshness_figures(window: Window, walk: Walk, base: Retrain) -> dict[str, Any]:
    """What `value-of-freshness` prints. `base`: the training schedule of the delayed arms."""
    fresh = metrics(walk, Arm(base))
    schedules = dict.fromkeys(arm.retrain for arm in walk.lists)
    return {
        **window.facts(),
        "delays_retrain": str(base),
        "delays": [
            {"delay_s": arm.delay_s, **_compared(walk, arm, fresh)}
            for arm in walk.lists
            if arm.retrain is base
        ],
        "retraining": [
            {
                "name": str(retrain),
                "every_s": retrain.every_s,
                "models": len(walk.lists[Arm(retrain)].end_ms),
                **_compared(walk, Arm(retrain), fresh),
            }
            for retrain in schedules
        ],
        "leaks": int(sum(lists.leaks.sum() for lists in walk.lists.values())),
    }


def metrics(walk: Walk, arm: Arm) -> dict[str, Float64Array]:
    """Metric → (q,) values of an arm."""
    hits = list_metrics.hits_of(walk.lists[arm].items, walk.queries.targets)
    found = list_metrics.accuracy(hits, walk.queries.n_targets)
    return {name: found[name] for name in METRICS}


def _measures(
    walk: Walk, arm: Arm, values: dict[str, Float64Array], mask: BoolArray
) -> dict[str, Any]:
    """The figures of the queries in a mask (q,)."""
    shown = walk.lists[arm].items[mask, :LENGTH]
    return {
        "queries": int(mask.sum()),
        **{name: float(value[mask].mean()) for name, value in values.items()},
        "coverage@10": list_metrics.coverage(shown, int(walk.n_items[mask].max())),
    }


def _compared(walk: Walk, arm: Arm, fresh: dict[str, Float64Array]) -> dict[str, Any]:
    """The figures of an arm, and its paired difference from the fresh one."""
    values = metrics(walk, arm)
    loss = values["hr@10"] - fresh["hr@10"]
    return {
        "hr@10": float(values["hr@10"].mean()),
        "interval": _interval(walk, values["hr@10"]),
        "ndcg@10": float(values["ndcg@10"].mean()),
        "ndcg@10_interval": _interval(walk, values["ndcg@10"]),
        "difference": float(loss.mean()),
        "difference_interval": _interval(walk, loss),
    }


def _interval(walk: Walk, values: Float64Array) -> list[float]:
    return list(list_metrics.interval_by_user(values, walk.queries.user, _SEED))


def require_figure_name(path: Path) -> None:
    """Raises BadInput for a file that cannot become a figure."""
    if path.suffix not in FIGURE_SUFFIXES:
        raise BadInput(
            f"--figure {path}: expected a name that ends in {', '.join(FIGURE_SUFFIXES)}"
        )


def draw(figures: dict[str, Any], path: Path) -> Path:
    """Draw what `freshness_figures` gives; returns the path."""
    figure = Figure(figsize=(10, 4))
    delays, retraining = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    names = [_NAMES.get(int(d["delay_s"]), f"{d['delay_s']:g} s") for d in figures["delays"]]
    _points(delays, names, figures["delays"])
    delays.set_xlabel("delay of the user's state")
    delays.set_ylabel("HR@10")
    delays.set_title(f"{figures['queries']:,} lists of {figures['users']:,} users")
    _points(retraining, [r["name"] for r in figures["retraining"]], figures["retraining"])
    retraining.set_xlabel("training after the first model")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    return path


def _points(axes: Axes, names: Sequence[str], measured: list[dict[str, Any]]) -> None:
    """HR@10 with its interval for each name, and the zero line of the fresh one."""
    value = np.array([m["hr@10"] for m in measured])
    low, high = np.array([m["interval"] for m in measured]).T
    axes.axhline(value.max(), color=_BASE_COLOUR, linewidth=1)
    error = np.maximum([value - low, high - value], 0.0)
    axes.errorbar(range(len(value)), value, yerr=error, fmt="o-", color=_COLOUR, capsize=3)
    axes.set_xticks(range(len(value)), names)
    axes.set_xlim(-0.5, len(value) - 0.5)
    axes.spines[["top", "right"]].set_visible(False)

"""Experiments in words and bars, from what GET /experiments and /experiments/{name} answer."""

from __future__ import annotations

from collections.abc import Sequence

from afterclick.arrays import Json

SHOWN = 4


def newest(experiments: Sequence[Json]) -> list[Json]:
    """Which ones are shown: what runs before what was stopped, the newest first."""
    runs = [experiment for experiment in reversed(experiments) if experiment["stopped"] is None]
    stopped = [
        experiment for experiment in reversed(experiments) if experiment["stopped"] is not None
    ]
    return (runs + stopped)[:SHOWN]


def experiment_panel(experiment: Json, results: Json) -> Json:
    """One experiment: its arms with intervals on one scale, and whether its users came as planned."""
    rows = results["arms"]
    broken = results["sample_ratio"]["broken"]
    scale = max((row["ctr"]["high"] for row in rows), default=0.0) or 1.0
    return {
        "name": experiment["name"],
        "running": results["running"],
        "when": _when(experiment),
        "note": experiment["note"],
        "level": f"{results['level']:.0%}",
        "broken": broken,
        "ratio": _ratio_words(results),
        "arms": [_arm(row, scale, broken) for row in rows],
    }


def _arm(row: Json, scale: float, broken: bool) -> Json:
    ctr = row["ctr"]
    return {
        "name": row["name"],
        "policy": row["policy"],
        "share": f"{row['share']:.0%}",
        "users": f"{row['users']:,}",
        "lists": f"{row['lists']:,}",
        "ctr": interval(ctr) if row["lists"] else "",
        "bar": {name: round(100 * ctr[name] / scale, 2) for name in ("low", "value", "high")},
        "against": _against(row, broken),
        "verdict": ""
        if broken or row["ctr_difference"] is None
        else verdict(row["ctr_difference"]),
        "conversion": interval(row["conversion"]) if row["users"] else "",
    }


def interval(estimate: Json) -> str:
    """A share and its interval, as in `5.1 % (4.0 to 6.2)`."""
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def verdict(difference: Json) -> str:
    """What the interval of a difference to the control allows to say."""
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "open"


def _against(row: Json, broken: bool) -> str:
    """The difference to the control, in points."""
    difference = row["ctr_difference"]
    if difference is None:
        return "control"
    if broken or not row["lists"]:
        return "-"
    value, low, high = (100 * difference[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f}), p {row['ctr_p_value']:.2g}"


def _ratio_words(results: Json) -> str:
    found = results["sample_ratio"]
    if not any(row["users"] for row in results["arms"]):
        return "Nobody has come yet."
    if found["broken"]:
        return f"Broken: users did not come as planned (p = {found['p_value']:.2g}). Do not read the figures."
    return f"Users came as planned (p = {found['p_value']:.2g})."


def _when(experiment: Json) -> str:
    began = str(experiment["created"])[:16].replace("T", " ")
    traffic = experiment["traffic"]
    share = "all users" if traffic >= 1 else f"{traffic:.0%} of the users"
    if experiment["stopped"] is None:
        return f"runs since {began}, {share}"
    return f"{began} to {str(experiment['stopped'])[:16].replace('T', ' ')}, {share}"

"""The dashboard's panel of experiments: arms with intervals, from GET /experiments."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import quote

import structlog

from afterclick.arrays import Json
from afterclick.errors import AfterclickError, BadInput
from ui.gateway import ShopClient
from ui.widgets import Age, ExperimentList, panel

log = structlog.get_logger()

MAX_EXPERIMENTS = 4
EMPTY = "No experiment yet: afterclick experiments create first --arm old:policy=popular --arm new"


class ExperimentsPanel:
    """Running and recently stopped experiments with their results."""

    def __init__(self, client: ShopClient) -> None:
        self._client = client

    def build(self) -> None:
        with panel("Experiments").props("data-panel=experiments"):
            self._age = Age()
            self._list = ExperimentList("Loading…")

    async def refresh(self) -> None:
        """Fetch and show; if the API does not answer, the panel keeps its content."""
        try:
            shown = newest((await self._client.get("/experiments"))["experiments"])
            results = await asyncio.gather(
                *(self._client.get(f"/experiments/{quote(e['name'], safe='')}") for e in shown)
            )
        except BadInput as error:
            self._list.show([], f"The API refused the request: {error}")
        except AfterclickError as error:
            log.info("experiments unavailable", error=str(error))
        else:
            pairs = zip(shown, results, strict=True)
            self._list.show([experiment_view(*pair) for pair in pairs], EMPTY)
            self._age.refresh()


def newest(experiments: Sequence[Json]) -> list[Json]:
    """The experiments to show: running before stopped, newest first."""
    newest_first = experiments[::-1]
    return sorted(newest_first, key=lambda e: e["stopped"] is not None)[:MAX_EXPERIMENTS]


def experiment_view(experiment: Json, results: Json) -> Json:
    """One experiment: its arms with intervals on one scale, and the sample ratio check."""
    arms = results["arms"]
    broken = results["sample_ratio"]["broken"]
    scale = max((arm["ctr"]["high"] for arm in arms), default=0.0) or 1.0
    return {
        "name": experiment["name"],
        "running": results["running"],
        "when": _period(experiment),
        "note": experiment["note"],
        "level": f"{results['level']:.0%}",
        "broken": broken,
        "ratio": _ratio_text(results),
        "arms": [_arm_row(arm, scale, broken) for arm in arms],
    }


def _arm_row(arm: Json, scale: float, broken: bool) -> Json:
    ctr, difference = arm["ctr"], arm["ctr_difference"]
    return {
        "name": arm["name"],
        "policy": arm["policy"],
        "share": f"{arm['share']:.0%}",
        "users": f"{arm['users']:,}",
        "lists": f"{arm['lists']:,}",
        "ctr": interval(ctr) if arm["lists"] else "",
        "bar": {name: round(100 * ctr[name] / scale, 2) for name in ("low", "value", "high")},
        "difference": _difference(arm, broken),
        "verdict": "" if broken or difference is None else verdict(difference),
        "conversion": interval(arm["conversion"]) if arm["users"] else "",
    }


def interval(estimate: Json) -> str:
    """A share with its interval: `5.1 % (4.0 to 6.2)`."""
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def verdict(difference: Json) -> str:
    """`better` or `worse` if the interval excludes zero, else `open`."""
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "open"


def _difference(arm: Json, broken: bool) -> str:
    """The difference to the control in percentage points."""
    difference = arm["ctr_difference"]
    if difference is None:
        return "control"
    if broken or not arm["lists"]:
        return "-"
    value, low, high = (100 * difference[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f}), p {arm['ctr_p_value']:.2g}"


def _ratio_text(results: Json) -> str:
    ratio = results["sample_ratio"]
    if not any(arm["users"] for arm in results["arms"]):
        return "No users yet."
    if ratio["broken"]:
        return (
            f"Sample ratio mismatch (p = {ratio['p_value']:.2g}): users are not split as planned. "
            "Do not use these figures."
        )
    return f"Users are split as planned (p = {ratio['p_value']:.2g})."


def _period(experiment: Json) -> str:
    created = str(experiment["created"])[:16].replace("T", " ")
    traffic = experiment["traffic"]
    share = "all users" if traffic >= 1 else f"{traffic:.0%} of the users"
    if experiment["stopped"] is None:
        return f"running since {created}, {share}"
    return f"{created} to {str(experiment['stopped'])[:16].replace('T', ' ')}, {share}"

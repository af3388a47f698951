"""The dashboard's panel of experiments: arms with intervals.

reads  GET /experiments, /experiments/{name}, /exposure
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from urllib.parse import quote

import structlog

from afterclick.arrays import Json
from afterclick.errors import AfterclickError, BadInput
from ui.gateway import ShopClient
from ui.widgets import Age, ExperimentList, panel

log = structlog.get_logger()

MAX_EXPERIMENTS = 4
EXPOSURE_DAYS = 90
EMPTY = (
    "No experiment yet: afterclick experiments create first --arm old:policy=popular --arm new "
    "--metric clicks_per_user --users 1000"
)
METRICS = {"conversion": "share of buyers", "clicks_per_user": "clicks per user"}


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
            names = [quote(experiment["name"], safe="") for experiment in shown]
            results = await asyncio.gather(
                *(self._client.get(f"/experiments/{name}") for name in names)
            )
            exposures = await asyncio.gather(*map(self._exposure, names))
        except BadInput as error:
            self._list.show([], f"The API refused the request: {error}")
        except AfterclickError as error:
            log.info("experiments unavailable", error=str(error))
        else:
            found = zip(shown, results, exposures, strict=True)
            self._list.show([experiment_view(*each) for each in found], EMPTY)
            self._age.refresh()

    async def _exposure(self, name: str) -> Sequence[Json]:
        """Rows of lists shown by arm; none while Redis is down: the results stay visible."""
        path = f"/exposure?days={EXPOSURE_DAYS}&experiment={name}"
        try:
            rows: Sequence[Json] = (await self._client.get(path))["rows"]
        except AfterclickError as error:
            log.info("lists of the experiment unavailable", error=str(error))
            return ()
        return rows


def newest(experiments: Sequence[Json]) -> list[Json]:
    """The experiments to show: running before stopped, newest first."""
    newest_first = experiments[::-1]
    return sorted(newest_first, key=lambda e: e["stopped"] is not None)[:MAX_EXPERIMENTS]


def experiment_view(experiment: Json, results: Json, exposure: Sequence[Json] = ()) -> Json:
    """One experiment: its plan, its arms with their differences on one scale, and the sample ratio
    check. `exposure`: its rows of /exposure."""
    arms, broken = results["arms"], results["sample_ratio"]["broken"]
    differences = [arm["difference"] for arm in arms if arm["difference"] and not broken]
    scale = max((max(-d["low"], d["high"]) for d in differences), default=0.0)
    percent = results["metric"] == "conversion"
    return {
        "name": experiment["name"],
        "running": results["running"],
        "when": _period(experiment),
        "note": experiment["note"],
        "plan": _plan_text(results),
        "metric": METRICS[results["metric"]],
        "level": f"{results['level']:.0%}",
        "broken": broken,
        "ratio": _ratio_text(results),
        "arms": [
            _arm_row(arm, percent, exposure) | _comparison(arm, scale, percent, broken)
            for arm in arms
        ],
    }


def _arm_row(arm: Json, percent: bool, exposure: Sequence[Json]) -> Json:
    mean = arm["conversion"] if percent else arm["clicks_per_user"]
    others = [_others(arm, percent)] if arm["users"] else []
    others += _reactions(row for row in exposure if row["arm"] == arm["name"])
    return {
        "name": arm["name"],
        "policy": arm["policy"],
        "share": f"{arm['share']:.0%}",
        "users": f"{arm['users']:,}",
        "lists": f"{arm['lists']:,}",
        "fallbacks": f"{arm['fallback_lists']:,}",
        "mean": figure(mean, percent) if arm["users"] else "",
        "others": ", ".join(others),
    }


def _reactions(rows: Iterable[Json]) -> list[str]:
    """The share of an arm's lists that were reacted to, as the stream counts them."""
    counts = [(row["lists"], row["reacted"]) for row in rows]
    lists, reacted = sum(n for n, _ in counts), sum(n for _, n in counts)
    return [f"reactions to {figure(reacted / lists, True)} of {lists:,} lists"] if lists else []


def _comparison(arm: Json, scale: float, percent: bool, broken: bool) -> Json:
    """The difference to the control, as text and as places on a scale with 0 in the middle."""
    difference = None if broken else arm["difference"]
    if difference is None:
        control = arm["decision"] is None and not broken
        return {"difference": "control" if control else "-", "decision": "", "bar": None}
    bar = {name: round(50 + 50 * difference[name] / scale, 2) for name in ("low", "value", "high")}
    text = f"{interval(difference, percent)}, p {arm['p_value']:.2g}"
    return {"difference": text, "decision": arm["decision"], "bar": bar}


def figure(value: float, percent: bool, sign: str = "") -> str:
    """`5.1 %` of a share, `0.512` of a mean."""
    return f"{100 * value:{sign}.1f} %" if percent else f"{value:{sign}.3f}"


def interval(estimate: Json, percent: bool) -> str:
    """A difference with its interval: `+0.5 (-0.1 to +1.1) points`."""
    factor, digits, unit = (100, 2, " points") if percent else (1, 3, "")
    numbers = (factor * estimate[name] for name in ("value", "low", "high"))
    value, low, high = (f"{number:+.{digits}f}" for number in numbers)
    return f"{value} ({low} to {high}){unit}"


def _others(arm: Json, percent: bool) -> str:
    """The figures that do not decide, without intervals."""
    metric = "clicks_per_user" if percent else "conversion"
    other = f"{figure(arm[metric], not percent)} {METRICS[metric]}"
    return f"{other}, {figure(arm['clicks_per_list'], False)} clicks per list"


def _plan_text(results: Json) -> str:
    """What is compared, and how far the plan is."""
    fewest = min(arm["users"] for arm in results["arms"])
    return (
        f"{METRICS[results['metric']]} in the {results['days']} days after a user's first list; "
        f"{fewest:,} of {results['planned_users']:,} users in the smallest arm"
    )


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

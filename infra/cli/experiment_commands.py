"""`afterclick experiments`: A/B tests, through the API.

reads, writes  http  /experiments of AFTERCLICK_UI__API_URL, with AFTERCLICK_UI__API_KEY
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from infra.cli.control import Json, Note, api, minute, path_of, print_list
from infra.cli.output import AsJson, emit, table

if TYPE_CHECKING:
    from rich.table import Table

experiments_app = typer.Typer(
    help="A/B tests: their arms, users and results.", no_args_is_help=True
)
ExperimentName = Annotated[str, typer.Argument(help="The experiment's name.")]
MetricName = Literal["conversion", "clicks_per_user"]


@experiments_app.command("ls")
def list_experiments(as_json: AsJson = False) -> None:
    """List every experiment, the oldest first."""
    headings = ("experiment", "arms", "traffic", "since", "until")
    print_list("experiments", headings, _experiment_row, as_json)


@experiments_app.command("create")
def create_experiment(
    name: ExperimentName,
    arm: Annotated[
        list[str],
        typer.Option(
            help="NAME, or NAME:OPTION=VALUE,… with the options policy, share, model, explore, "
            "draw, diversity and weights.PART; the first one is the control. Repeat."
        ),
    ],
    metric: Annotated[MetricName, typer.Option(help="The one metric that decides, per user.")],
    users: Annotated[
        int | None, typer.Option(help="Users that each arm needs; or give baseline and effect.")
    ] = None,
    baseline: Annotated[float | None, typer.Option(help="The metric's value today.")] = None,
    effect: Annotated[
        float | None,
        typer.Option(help="The smallest relative change to detect: 0.1 is 10 %; power 80 %."),
    ] = None,
    deviation: Annotated[
        float | None,
        typer.Option(help="Standard deviation of the metric over users; not for conversion."),
    ] = None,
    days: Annotated[
        int, typer.Option(help="Days from a user's first list on in which actions count.")
    ] = 7,
    traffic: Annotated[float, typer.Option(help="The share of users who take part.")] = 1.0,
    note: Note = "",
    as_json: AsJson = False,
) -> None:
    """Start an experiment, as in `create first --arm old:policy=popular --arm new --metric
    conversion --baseline 0.05 --effect 0.1`.
    """
    plan = {"users": users, "baseline": baseline, "effect": effect, "deviation": deviation}
    draft = {
        "name": name,
        "metric": metric,
        "plan": plan,
        "days": days,
        "arms": [parse_arm(text) for text in arm],
        "traffic": traffic,
        "note": note,
    }
    with api() as client:
        experiment = client.post("/experiments", draft)
    shown = "; ".join(f"{a['name']} {_options(a)}".strip() for a in experiment["arms"])
    planned = f"{experiment['plan']['users']:,} users per arm"
    emit(experiment, as_json, f"{name} runs for {planned}: {shown}")


@experiments_app.command("stop")
def stop_experiment(name: ExperimentName) -> None:
    """End an experiment; its results remain."""
    with api() as client:
        client.post(path_of("experiments", name) + "/stop", {})
    typer.echo(f"{name} stopped")


@experiments_app.command("show")
def show_experiment(
    name: ExperimentName,
    level: Annotated[
        float,
        typer.Option(min=0.5, max=0.9999, help="Confidence level of intervals and decisions."),
    ] = 0.95,
    as_json: AsJson = False,
) -> None:
    """Show each arm's difference to the control and what it decides; valid whenever it is read."""
    with api() as client:
        results = client.get(path_of("experiments", name), level=level)
    emit(results, as_json, lambda: _results_table(results))


def parse_arm(text: str) -> Json:
    """`new:explore=0.1,weights.trend=2` as an arm. Raises BadInput."""
    from afterclick.errors import BadInput

    name, _, options = text.partition(":")
    arm: Json = {"name": name}
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if not equals:
            raise BadInput(f"{option}: write OPTION=VALUE, as in policy=popular")
        group, dot, part = key.partition(".")
        if dot:
            arm.setdefault(group, {})[part] = value
        else:
            arm[key] = value
    return arm


def _experiment_row(row: Json) -> tuple[Any, ...]:
    arms = "\n".join(f"{a['name']} ({a['share']:g}): {_options(a)}" for a in row["arms"])
    times = (minute(row["created"]), minute(row["stopped"]))
    name = f"{row['name']}\n{row['metric']}\n{row['plan']['users']:,} users per arm"
    return name, arms, f"{row['traffic']:.0%}", *times


def _results_table(results: Json) -> Table:
    ratio = results["sample_ratio"]
    verdict = "broken: do not read the results" if ratio["broken"] else "as planned"
    caption = (
        f"{results['metric']} in {results['days']} days decides; "
        f"{results['planned_users']:,} users per arm planned; level {results['level']:g}\n"
        f"split of users {verdict} (p = {ratio['p_value']:.3g}); actions counted until "
        f"{minute(results['counted_until']) or '-'}"
    )
    headings = ("users", "lists", "fallbacks", "mean", "difference", "p", "decision")
    rows = (_arm_row(arm, results["metric"]) for arm in results["arms"])
    return table(("arm", "policy", *headings), rows, caption)


def _arm_row(arm: Json, metric: str) -> tuple[Any, ...]:
    percent, p_value = metric == "conversion", arm["p_value"]
    return (
        arm["name"],
        arm["policy"],
        *(f"{arm[name]:,}" for name in ("users", "lists", "fallback_lists")),
        f"{arm[metric]:.2%}" if percent else f"{arm[metric]:.4f}",
        _interval(arm["difference"], percent),
        None if p_value is None else f"{p_value:.3g}",
        arm["decision"],
    )


def _options(arm: Json) -> str:
    """An arm's options other than its name and share."""
    rest = {name: value for name, value in arm.items() if name not in ("name", "share") and value}
    return " ".join(f"{name}={value}" for name, value in rest.items())


def _interval(estimate: dict[str, float] | None, percent: bool) -> str:
    if estimate is None:
        return ""
    factor, digits, unit = (100, 2, " %") if percent else (1, 4, "")
    numbers = (estimate[name] * factor for name in ("value", "low", "high"))
    value, low, high = (f"{number:+.{digits}f}" for number in numbers)
    return f"{value}{unit} [{low}, {high}]"

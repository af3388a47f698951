"""`afterclick experiments`: A/B tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.commands.db import upgraded_database

if TYPE_CHECKING:
    from serving.control.experiments import Experiment

app = typer.Typer(
    help="A/B tests: who gets which lists, and what came of it.", no_args_is_help=True
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Name = Annotated[str, typer.Argument(help="The experiment's name.")]


@app.command()
def ls(as_json: Json = False) -> None:
    """Every experiment, the oldest first."""
    experiments = _experiments()
    if as_json:
        _json({"experiments": [experiment.model_dump() for experiment in experiments]})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("experiment", "arms", "traffic", "since", "until")
    for experiment in experiments:
        arms = "\n".join(
            f"{arm.name} ({arm.share:g}): {arm.options.label}" for arm in experiment.arms
        )
        ended = f"{experiment.stopped:%Y-%m-%d %H:%M}" if experiment.stopped else ""
        since = f"{experiment.created:%Y-%m-%d %H:%M}"
        table.add_row(experiment.name, arms, f"{experiment.traffic:.0%}", since, ended)
    Console().print(table)


@app.command()
def create(
    name: Name,
    arm: Annotated[
        list[str],
        typer.Option(
            help="NAME, or NAME:OPTION=VALUE,… with the options policy, share, model, explore, draw, "
            "diversity and weights.PART; the first one is the control. Repeat."
        ),
    ],
    traffic: Annotated[float, typer.Option(help="The share of users who take part.")] = 1.0,
    note: Annotated[str, typer.Option(help="Why, for those who find it later.")] = "",
    as_json: Json = False,
) -> None:
    """Begin an experiment, as in `create first --arm old:policy=popular --arm new:explore=0.1`.

    Running APIs take it up in seconds.
    """
    from pydantic import ValidationError
    from sqlalchemy.exc import IntegrityError

    from afterclick.errors import AlreadyThere, BadInput
    from serving.control.experiments import Experiment, ExperimentDraft, add_experiment

    try:
        draft = {
            "name": name,
            "arms": [_arm(text) for text in arm],
            "traffic": traffic,
            "note": note,
        }
        experiment = Experiment.of(ExperimentDraft.model_validate(draft))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise BadInput(" ".join((*map(str, problem["loc"]), problem["msg"]))) from None
    try:
        with upgraded_database().begin() as connection:
            add_experiment(connection, experiment)
    except IntegrityError:
        raise AlreadyThere(f"there is an experiment {name} already: take another name") from None
    if as_json:
        _json(experiment.model_dump())
    else:
        typer.echo(
            f"{name} runs: " + "; ".join(f"{a.name} {a.options.label}" for a in experiment.arms)
        )


@app.command()
def stop(name: Name) -> None:
    """End an experiment: its users get what they got before. Its results stay."""
    from afterclick.errors import NotFound
    from serving.control.experiments import stop_experiment

    with upgraded_database().begin() as connection:
        if not stop_experiment(connection, name):
            raise NotFound(
                f"no experiment {name} is running: `afterclick experiments ls` shows them"
            )
    typer.echo(f"{name} is stopped")


@app.command()
def show(
    name: Name,
    level: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Of the intervals.")] = 0.95,
    as_json: Json = False,
) -> None:
    """What an experiment says so far: CTR and conversion with intervals, and the sample ratio check."""
    
    from afterclick.errors import NotFound
    from serving.control.experiments import read_sums, results

    experiment = next((e for e in _experiments() if e.name == name), None)
    if experiment is None:
        raise NotFound(f"no experiment {name}: `afterclick experiments ls` shows them")
    with upgraded_database().begin() as connection:
        found = results(experiment, read_sums(connection, name), level)
    if as_json:
        _json(found)
    else:
        _print(found)


def _arm(text: str) -> dict[str, Any]:
    """`new:explore=0.1,weights.trend=2` as an arm."""
    from afterclick.errors import BadInput

    name, _, options = text.partition(":")
    arm: dict[str, Any] = {"name": name}
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


def _experiments() -> tuple[Experiment, ...]:
    from serving.control.experiments import read_experiments

    with upgraded_database().begin() as connection:
        return read_experiments(connection)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "arm",
        "policy",
        "users",
        "lists",
        "CTR",
        "against control",
        "p",
        "conversion",
        "against control",
    )
    for arm in found["arms"]:
        table.add_row(
            arm["name"],
            arm["policy"],
            f"{arm['users']:,}",
            f"{arm['lists']:,}",
            _interval(arm["ctr"]),
            _interval(arm["ctr_difference"], sign="+"),
            "" if arm["ctr_p_value"] is None else f"{arm['ctr_p_value']:.3g}",
            _interval(arm["conversion"]),
            _interval(arm["conversion_difference"], sign="+"),
        )
    console = Console()
    console.print(table)
    ratio = found["sample_ratio"]
    verdict = "broken: do not read the results" if ratio["broken"] else "as planned"
    console.print(
        f"split of users {verdict} (p = {ratio['p_value']:.3g}); intervals at {found['level']:g}"
    )


def _interval(estimate: dict[str, float] | None, sign: str = "") -> str:
    if estimate is None:
        return ""
    value, low, high = (f"{estimate[name] * 100:{sign}.2f}" for name in ("value", "low", "high"))
    return f"{value} % [{low}, {high}]"


def _json(value: dict[str, Any]) -> None:
    import orjson

    typer.echo(orjson.dumps(value))

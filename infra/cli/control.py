"""`afterclick rules`, `experiments`, `api-key`, `db`: the control plane, through the API.

reads, writes  http  /rules, /experiments, /keys of AFTERCLICK_UI__API_URL, with
                     AFTERCLICK_UI__API_KEY
               sql   the revision of the tables (`db`)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

import typer

from infra.cli.output import AsJson, emit, table

if TYPE_CHECKING:
    from rich.table import Table

    from afterclick.io.client import Client
    from serving.control.store import Database

rules_app = typer.Typer(help="Business rules: boost, bury, pin, exclude.", no_args_is_help=True)
keys_app = typer.Typer(help="API keys, created and revoked at run time.", no_args_is_help=True)
db_app = typer.Typer(help="The SQL tables of the API.", no_args_is_help=True)
Note = Annotated[str, typer.Option(help="Why, for later readers.")]
DATES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]
Json = dict[str, Any]
RuleKind = Literal["boost", "bury", "pin", "exclude"]


class Scope(StrEnum):
    """What a key permits. An enum, because typer supports no list of literals."""

    RECOMMEND = "recommend"
    FEEDBACK = "feedback"
    ADMIN = "admin"


@rules_app.command("ls")
def list_rules(as_json: AsJson = False) -> None:
    """List every rule, the oldest first, and whether it is in force."""
    headings = ("rule", "action", "items", "from", "until", "in force", "note")
    print_list("rules", headings, _rule_row, as_json)


@rules_app.command("add")
def add_rule(
    action: Annotated[RuleKind, typer.Argument(help="What to do with the items.")],
    query: Annotated[
        list[str],
        typer.Argument(help="Which items: FIELD:VALUE on item, category, brand, title, price."),
    ],
    amount: Annotated[
        float | None, typer.Option(help="boost, bury: added to or subtracted from the score.")
    ] = None,
    position: Annotated[int | None, typer.Option(help="pin: the rank, from 1.")] = None,
    starts: Annotated[
        datetime | None, typer.Option(formats=DATES, help="In force from then on (UTC).")
    ] = None,
    ends: Annotated[
        datetime | None, typer.Option(formats=DATES, help="In force until then (UTC).")
    ] = None,
    note: Note = "",
    as_json: AsJson = False,
) -> None:
    """Add a rule, as in `afterclick rules add boost brand:Sony price:..50 --amount 2`."""
    draft = {
        "action": action,
        "query": query,
        "amount": amount,
        "position": position,
        "starts": starts and starts.replace(tzinfo=UTC).isoformat(),
        "ends": ends and ends.replace(tzinfo=UTC).isoformat(),
        "note": note,
    }
    with api() as client:
        rule = client.post("/rules", draft)
    emit(rule, as_json, f"rule {rule['rule_id']}: {rule['action']} {' '.join(rule['query'])}")


@rules_app.command("rm")
def remove_rule(
    rule_id: Annotated[str, typer.Argument(help="The rule's id, as in `ls`.")],
) -> None:
    """Remove a rule."""
    with api() as client:
        client.delete(path_of("rules", rule_id))
    typer.echo(f"rule {rule_id} removed")


@keys_app.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="What the key is for; a name is used once.")],
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What it permits; repeat. Default: recommend and feedback."),
    ] = None,
    note: Note = "",
    setting: Annotated[
        bool,
        typer.Option("--setting", help="Store nothing; print the setting that defines the key."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create an API key and print it, once. Running APIs accept it within seconds.

    The first key makes the API require keys, so it needs the scope admin. With --setting no API has
    to run.
    """
    draft: Json = {
        "name": name,
        "scopes": [str(s) for s in scope or (Scope.RECOMMEND, Scope.FEEDBACK)],
        "note": note,
    }
    created = _key_setting(draft) if setting else _stored_key(draft)
    variable = created.pop("setting", None)
    lines = [f"key      {created['key']}", *([f"setting  {variable}"] if variable else [])]
    emit(created, as_json, "\n".join(lines))


@keys_app.command("ls")
def list_keys(as_json: AsJson = False) -> None:
    """List every key in SQL, the oldest first, including revoked ones; never the key itself."""
    print_list("keys", ("key", "scopes", "since", "revoked", "note"), _key_row, as_json)


@keys_app.command("revoke")
def revoke_key(name: Annotated[str, typer.Argument(help="The key's name, as in `ls`.")]) -> None:
    """Revoke a key: running APIs reject it within seconds."""
    with api() as client:
        client.delete(path_of("keys", name))
    typer.echo(f"key {name} revoked")


@db_app.command("upgrade")
def upgrade_tables() -> None:
    """Upgrade the SQL tables to the revision of this program; the API does it when it starts."""
    database = open_database()
    typer.echo(f"{database} is at {database.revision()}")


@db_app.command("status")
def show_revision() -> None:
    """Show the revision of the SQL tables, and the newest one of this program."""
    from serving.control.store import head

    database = open_database(upgrade=False)
    revision = database.revision() or "base"
    typer.echo(f"{database} is at {revision}; the newest revision is {head()}")


@contextmanager
def api() -> Iterator[Client]:
    """A client of the API of the settings."""
    from afterclick.io.client import Client
    from afterclick.settings import Settings

    ui = Settings().ui
    with Client(ui.api_url, ui.api_key, attempts=1) as client:
        yield client


def open_database(upgrade: bool = True) -> Database:
    """The SQL database of the settings."""
    from afterclick.settings import Settings
    from serving.control.store import Database

    settings = Settings()
    settings.home.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database)
    if upgrade:
        database.upgrade()
    return database


def _stored_key(draft: Json) -> Json:
    """Create a key through the API. Raises BadInput for a first key without the scope admin."""
    from afterclick.errors import BadInput

    with api() as client:
        keyed = "authorization" in client.headers
        if not keyed and "admin" not in draft["scopes"] and not client.get("/keys")["keys"]:
            raise BadInput(
                "the first key needs the scope admin, or no one could manage the API: "
                "add `--scope admin`"
            )
        return client.post("/keys", draft)


def _key_setting(draft: Json) -> Json:
    """A key that only the setting AFTERCLICK_SERVING__KEYS knows. Raises BadInput."""
    import orjson
    from pydantic import ValidationError

    from afterclick.errors import BadInput
    from serving.control.api_keys import KeyDraft, StoredKey

    try:
        stored, key = StoredKey.of(KeyDraft.model_validate(draft))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise BadInput(" ".join((*map(str, problem["loc"]), problem["msg"]))) from None
    value = orjson.dumps({stored.name: {"sha256": stored.sha256, "scopes": stored.scopes}}).decode()
    row = stored.model_dump(exclude={"sha256"})
    return {"key": key, **row, "setting": f"AFTERCLICK_SERVING__KEYS='{value}'"}


def print_list(
    name: str, headings: tuple[str, ...], row: Callable[[Json], tuple[Any, ...]], as_json: bool
) -> None:
    """Print the entries of GET /`name`, a row for each."""
    with api() as client:
        answer = client.get(f"/{name}")
    emit(answer, as_json, lambda: table(headings, map(row, answer[name])))


def path_of(collection: str, name: str) -> str:
    return f"/{collection}/{quote(name, safe='')}"


def _rule_row(rule: Json) -> tuple[Any, ...]:
    value = rule["amount"] if rule["amount"] is not None else rule["position"]
    action = f"{rule['action']} {'' if value is None else f'{value:g}'}".strip()
    times = (minute(rule["starts"]), minute(rule["ends"]))
    in_force = "yes" if rule["in_force"] else ""
    return rule["rule_id"], action, "\n".join(rule["query"]), *times, in_force, rule["note"]


def _key_row(key: Json) -> tuple[Any, ...]:
    times = (minute(key["created"]), minute(key["revoked"]))
    return key["name"], ", ".join(key["scopes"]), *times, key["note"]


def minute(time: str | None) -> str:
    return time[:16].replace("T", " ") if time else ""


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

"""`afterclick rules`, `api-key`, `db`: the control plane, through the API.

reads, writes  http  /rules, /keys of AFTERCLICK_UI__API_URL, with
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

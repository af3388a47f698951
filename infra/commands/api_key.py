"""`afterclick api-key`: who may ask."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.commands.db import upgraded_database

if TYPE_CHECKING:
    from serving.control.api_keys import StoredKey

app = typer.Typer(help="API keys, made and revoked while the API runs.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class Scope(StrEnum):
    """What a key may do."""

    RECOMMEND = "recommend"
    FEEDBACK = "feedback"
    ADMIN = "admin"


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What the key is for; a name is used once.")],
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What it may do; repeat for several. By default recommend and feedback."),
    ] = None,
    note: Annotated[str, typer.Option(help="For those who find it later.")] = "",
    setting: Annotated[
        bool,
        typer.Option(
            "--setting", help="Keep no row: print the setting that makes the API know it."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make an API key and print it, once. Running APIs take it up in seconds.

    The first key makes the API ask everybody for one.
    """
    from pydantic import ValidationError

    from afterclick.errors import BadInput
    from serving.control.api_keys import KeyDraft, StoredKey, add_key

    scopes = [str(s) for s in scope or (Scope.RECOMMEND, Scope.FEEDBACK)]
    try:
        draft = KeyDraft.model_validate({"name": name, "scopes": scopes, "note": note})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise BadInput(" ".join((*map(str, problem["loc"]), problem["msg"]))) from None
    kept, key = StoredKey.of(draft) if setting else add_key(upgraded_database(), draft)
    if as_json:
        _json({"key": key, **_row(kept)})
        return
    typer.echo(f"key      {key}")
    if setting:
        typer.echo(f"setting  AFTERCLICK_SERVING__KEYS='{_setting(kept)}'")


@app.command()
def ls(as_json: Json = False) -> None:
    """Every key in SQL, the oldest first, revoked ones among them; never the key itself."""
    from serving.control.api_keys import read_keys

    with upgraded_database().begin() as connection:
        keys = read_keys(connection)
    if as_json:
        _json({"keys": [_row(key) for key in keys]})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("key", "may", "since", "revoked", "note")
    for key in keys:
        since, revoked = (f"{at:%Y-%m-%d %H:%M}" if at else "" for at in (key.created, key.revoked))
        table.add_row(key.name, ", ".join(key.scopes), since, revoked, key.note)
    Console().print(table)


@app.command()
def revoke(name: Annotated[str, typer.Argument(help="The key's name, as `ls` shows it.")]) -> None:
    """End a key: running APIs refuse it within seconds."""
    from serving.control.api_keys import revoke_key

    revoke_key(upgraded_database(), name)
    typer.echo(f"key {name} is revoked")


def _row(key: StoredKey) -> dict[str, Any]:
    return key.model_dump(exclude={"sha256"})


def _setting(key: StoredKey) -> str:
    import orjson

    return orjson.dumps({key.name: {"sha256": key.sha256, "scopes": key.scopes}}).decode()


def _json(value: dict[str, Any]) -> None:
    import orjson

    typer.echo(orjson.dumps(value))

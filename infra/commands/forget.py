"""`afterclick forget`: erase what is known of a user."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Erase what is known of a user.", no_args_is_help=True)


@app.command()
def forget(
    user_id: Annotated[str, typer.Argument(help="The user whose events until now never happened.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Erase a user from Redis, SQL, the log and the next model; no replay brings them back.

    The stream may run meanwhile. Kafka keeps its records until their retention. Run it again where it was
    cut off.
    """
    from dataclasses import asdict

    import orjson

    from afterclick.settings import Settings
    from infra.commands.db import upgraded_database
    from serving.control.store import forget_user
    from streaming.proof.forget import forget as erase

    found = erase(Settings(), user_id)
    sql_rows = forget_user(upgraded_database(), user_id)
    if as_json:
        typer.echo(orjson.dumps(asdict(found) | {"sql_rows": sql_rows}))
        return
    typer.echo(f"{found.events:,} events taken back")
    typer.echo(f"{found.rows:,} rows of the Parquet log and {sql_rows:,} rows in SQL erased")
    if found.unknown:
        typer.echo(
            f"{found.unknown:,} events are in no log any more: what they counted stays, without a name"
        )

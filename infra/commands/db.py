"""`afterclick db`: the SQL tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from serving.control.store import Database

app = typer.Typer(
    help="The SQL tables: rules, experiments, keys, items, users, the request log.",
    no_args_is_help=True,
)


@app.command()
def upgrade() -> None:
    """Bring the SQL tables to this program's revision. The API does it by itself when it starts."""
    database = open_database()
    database.upgrade()
    typer.echo(f"{database} is at {database.revision()}")


@app.command()
def downgrade(
    revision: Annotated[str, typer.Argument(help="A revision; `base` takes every table away.")],
) -> None:
    """Take the SQL tables back to an older revision. What newer ones held is lost."""
    database = open_database()
    database.downgrade(revision)
    typer.echo(f"{database} is at {database.revision() or 'base'}")


@app.command()
def status() -> None:
    """Which revision the SQL tables are at, and which one this program knows."""
    from serving.control.store import head

    database = open_database()
    typer.echo(
        f"{database} is at {database.revision() or 'base'}; this program's newest is {head()}"
    )


@app.command()
def forget(user_id: Annotated[str, typer.Argument(help="The user to erase.")]) -> None:
    """Erase a user from the SQL tables: the counts of experiments, the row of the user, the request log."""
    from serving.control.store import forget_user

    typer.echo(f"{forget_user(upgraded_database(), user_id):,} rows erased")


def open_database() -> Database:
    """The database that the settings name. Makes its folder where that is SQLite's."""
    from afterclick.settings import Settings
    from serving.control.store import Database

    settings = Settings()
    settings.home.mkdir(parents=True, exist_ok=True)
    return Database(settings.database)


def upgraded_database() -> Database:
    """The same, with its tables made."""
    database = open_database()
    database.upgrade()
    return database

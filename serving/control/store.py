"""The SQL database of the control plane: SQLite in the home folder, or Postgres. Calls block.

reads, writes  sql  every table of `tables`
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, quote_plus

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from pydantic import BaseModel, ValidationError
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Table,
    create_engine,
    delete,
    event,
    make_url,
    or_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    IntegrityError,
    NoSuchModuleError,
    SQLAlchemyError,
)

from afterclick.errors import BadInput, Unavailable
from serving.control.tables import experiment_users, request_log, users

log = structlog.get_logger()
TIMEOUT_S: Final = 5
"""Limit for a connection, a lock and a statement."""
_MIGRATING: Final = threading.Lock()  # alembic's context is global
T = TypeVar("T", bound=BaseModel)


class Database:
    """Short transactions on a small pool. Connects on the first one."""

    def __init__(self, url: str) -> None:
        """Raises BadInput for a malformed URL and for a driver that is not installed."""
        try:
            self._url = _with_driver(make_url(url))
            self._engine = _engine(self._url)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise BadInput(
                f"AFTERCLICK_SERVING__DATABASE is not a usable database URL: {error}"
            ) from None
        self._upgraded = False

    def __str__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction: committed at the end, rolled back by an exception.

        Raises Unavailable if the database fails, BadInput for an unknown revision. IntegrityError
        and DataError pass: they concern the caller's rows.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except (DataError, IntegrityError):
            raise
        except CommandError as error:
            raise BadInput(f"tables of {self}: {error}") from error
        except SQLAlchemyError as error:
            self._upgraded = False  # it may come back empty
            raise Unavailable(f"database {self} failed: {_first_line(error)}") from error

    def upgrade(self, revision: str = "head") -> None:
        """Migrate the tables to a revision, once per connection loss. Raises Unavailable."""
        if self._upgraded and revision == "head":
            return
        if self._url.get_backend_name() == "sqlite" and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        with _MIGRATING, self.begin() as connection:
            if revision != "head" or _revision(connection) != head():
                command.upgrade(_config(connection), revision)
        self._upgraded = revision == "head"

    def revision(self) -> str | None:
        """The revision of the tables; None before the first upgrade."""
        with self.begin() as connection:
            return _revision(connection)

    def close(self) -> None:
        """Close the pooled connections."""
        self._engine.dispose()


def insert_into(connection: Connection, table: Table) -> Any:
    """An insert with `on_conflict_do_update`, in the dialect of the connection."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)


def readable(kind: type[T], rows: Iterable[Mapping[Any, Any]]) -> Iterator[T]:
    """Each row as a model. Skips, with a warning, rows this version cannot parse."""
    for row in rows:
        try:
            yield kind.model_validate(dict(row))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            log.warning("row skipped", kind=kind.__name__, field=first["loc"], reason=first["msg"])


def forget_user(database: Database, user_id: str) -> int:
    """Delete a user's rows; their number. Raises Unavailable.

    Deletes every request whose target contains the id, plain or escaped: an id that is part of
    another id deletes some requests of that user as well. Rows logged later are kept.
    """
    spellings = {user_id, quote(user_id, safe=""), quote(user_id), quote_plus(user_id)}
    named = [request_log.c.target.contains(spelling, autoescape=True) for spelling in spellings]
    deletions = (
        delete(experiment_users).where(experiment_users.c.user_id == user_id),
        delete(users).where(users.c.user_id == user_id),
        delete(request_log).where(or_(*named)),
    )
    with database.begin() as connection:
        return sum(connection.execute(deletion).rowcount for deletion in deletions)


def head() -> str | None:
    """The newest revision known to this version."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _with_driver(url: URL) -> URL:
    """postgres:// and postgresql:// use psycopg."""
    return (
        url.set(drivername="postgresql+psycopg")
        if url.drivername in {"postgres", "postgresql"}
        else url
    )


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": TIMEOUT_S})
        event.listen(engine, "connect", _set_up_sqlite)
        return engine
    limits: dict[str, Any] = {}
    if url.get_backend_name() == "postgresql":
        milliseconds = TIMEOUT_S * 1000
        limits = {"connect_timeout": TIMEOUT_S, "tcp_user_timeout": milliseconds}
        if "options" not in url.query:
            limits["options"] = (
                f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
            )
    return create_engine(
        url,
        connect_args=limits,
        pool_size=2,
        max_overflow=2,
        pool_timeout=TIMEOUT_S,
        pool_pre_ping=True,
    )


def _set_up_sqlite(connection: Any, _: object) -> None:
    """WAL: readers do not wait for the writer, and a process crash loses no commit."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _first_line(error: SQLAlchemyError) -> str:
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]

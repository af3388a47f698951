"""The SQL database by its URL: SQLite in the home folder, or Postgres. Everything here blocks.

reads, writes  sql  every table of `tables`
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    IntegrityError,
    NoSuchModuleError,
    SQLAlchemyError,
)

from afterclick.errors import BadInput, Unavailable

log = structlog.get_logger()
WAIT_S: Final = 5
"""How long a connection, a lock or a statement may take."""
_MIGRATING: Final = threading.Lock()  # alembic's context belongs to the process


class Database:
    """Short transactions on a small pool. Nothing connects before the first one."""

    def __init__(self, url: str) -> None:
        """Raises BadInput for a URL that is none, or whose driver is not installed."""
        try:
            self._url = _with_driver(make_url(url))
            self._engine = _engine(self._url)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise BadInput(f"AFTERCLICK_SERVING__DATABASE is no database URL: {error}") from None

    def __str__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction: committed at the end, rolled back by an exception.

        Raises Unavailable where the database does not do its part, BadInput for a revision that this
        program does not know. IntegrityError and DataError pass: what was to be written is wrong.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except (DataError, IntegrityError):
            raise
        except CommandError as error:
            raise BadInput(f"the tables of {self}: {error}") from error
        except SQLAlchemyError as error:
            raise Unavailable(
                f"the database {self} does not answer: {_first_line(error)}"
            ) from error

    def upgrade(self, revision: str = "head") -> None:
        """Bring the tables to a revision; nothing happens where they are there. Raises Unavailable."""
        if self._url.get_backend_name() == "sqlite" and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        with _MIGRATING, self.begin() as connection:
            if revision != "head" or _revision(connection) != head():
                command.upgrade(_config(connection), revision)

    def downgrade(self, revision: str = "base") -> None:
        """Take the tables back to an older revision, and what newer ones held with it."""
        with _MIGRATING, self.begin() as connection:
            command.downgrade(_config(connection), revision)

    def revision(self) -> str | None:
        """What the tables are at; None before the first upgrade."""
        with self.begin() as connection:
            return _revision(connection)

    def close(self) -> None:
        """Close the pooled connections."""
        self._engine.dispose()


def head() -> str | None:
    """The newest revision of the tables that this program knows."""
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
    """postgres:// and postgresql:// mean psycopg."""
    return (
        url.set(drivername="postgresql+psycopg")
        if url.drivername in {"postgres", "postgresql"}
        else url
    )


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": WAIT_S})
        event.listen(engine, "connect", _set_up_sqlite)
        return engine
    limits: dict[str, Any] = {}
    if url.get_backend_name() == "postgresql":
        milliseconds = WAIT_S * 1000
        limits = {"connect_timeout": WAIT_S, "tcp_user_timeout": milliseconds}
        if "options" not in url.query:
            limits["options"] = (
                f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
            )
    return create_engine(
        url,
        connect_args=limits,
        pool_size=2,
        max_overflow=2,
        pool_timeout=WAIT_S,
        pool_pre_ping=True,
    )


def _set_up_sqlite(connection: Any, _: object) -> None:
    """Readers do not wait for the writer, and a crash loses no commit of the process."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _first_line(error: SQLAlchemyError) -> str:
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]

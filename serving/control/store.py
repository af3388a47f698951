"""The SQL database of the control plane and its tables: SQLite in the home folder, or Postgres.

reads, writes  sql  every table; `migrations/` creates them

Calls block.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from pydantic import BaseModel, ValidationError
from sqlalchemy import (
    JSON,
    URL,
    BigInteger,
    Column,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    create_engine,
    event,
    make_url,
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


class UtcDateTime(TypeDecorator[datetime]):
    """A time with its zone; SQLite stores it as UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


NAMES = {"pk": "pk_%(table_name)s", "ix": "ix_%(table_name)s_%(column_0_N_name)s"}
metadata = MetaData(naming_convention=NAMES)

rules = Table(
    "rules",
    metadata,
    Column("rule_id", String(64), primary_key=True),
    Column("action", String(16), nullable=False),
    Column("query", JSON, nullable=False),
    Column("amount", Float),
    Column("position", Integer),
    Column("starts", UtcDateTime),
    Column("ends", UtcDateTime),
    Column("note", Text, nullable=False),
    Column("created", UtcDateTime, nullable=False),
)

experiments = Table(
    "experiments",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("metric", String(32), nullable=False),
    Column("plan", JSON, nullable=False),
    Column("days", Integer, nullable=False),
    Column("salt", String(64), nullable=False),
    Column("traffic", Float, nullable=False),
    Column("arms", JSON, nullable=False),
    Column("note", Text, nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("stopped", UtcDateTime),
)

experiment_users = Table(
    "experiment_users",
    metadata,
    Column("experiment", String(64), primary_key=True),
    Column("user_id", String(128), primary_key=True),
    Column("arm", String(64), nullable=False),
    Column("first_shown", UtcDateTime, nullable=False),
    Column("lists", BigInteger, nullable=False),
    Column("fallback_lists", BigInteger, nullable=False),
    Column("clicks", BigInteger, nullable=False),
    Column("purchases", BigInteger, nullable=False),
    Index(None, "user_id"),
)

experiment_progress = Table(
    "experiment_progress",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", BigInteger, nullable=False),
    Column("positions", JSON, nullable=False),
    Column("counted_until", UtcDateTime),
)
"""One row: how far the log is counted."""

request_log = Table(
    "request_log",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    ),
    Column("at", UtcDateTime, nullable=False),
    Column("method", String(16), nullable=False),
    Column("route", String(128), nullable=False),
    Column("target", Text, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("milliseconds", Float, nullable=False),
    Column("caller", String(128)),
    Column("user_id", String(128)),
    Column("session_id", String(128)),
    Index(None, "at"),
    Index(None, "user_id"),
    Index(None, "session_id"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("note", Text, nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("revoked", UtcDateTime),
)

token_revocations = Table(
    "token_revocations",
    metadata,
    Column("user_id", String(128), primary_key=True),
    Column("not_before", UtcDateTime, nullable=False),
    Column("number", BigInteger, nullable=False, server_default="1"),
    Index(None, "not_before"),
    Index(None, "number"),
)
"""Per user when tokens were last revoked; `number` counts the changes of the table."""

items = Table(
    "items",
    metadata,
    Column("item_id", String(128), primary_key=True),
    Column("title", Text),
    Column("categories", JSON, nullable=False),
    Column("brand", Text),
    Column("price", Float),
    Column("written", UtcDateTime, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("user_id", String(128), primary_key=True),
    Column("first_seen", UtcDateTime, nullable=False),
    Column("last_seen", UtcDateTime, nullable=False),
    Column("interests", JSON(none_as_null=True)),
    Column("interests_at", UtcDateTime),
    Index(None, "interests_at"),
)

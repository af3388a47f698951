"""The SQL tables; `migrations/` creates them.

rules             business rules
experiments       experiments and their arms
experiment_users  counts per user of an experiment: only ever incremented
request_log       one row per answered request
api_keys          hashes of API keys and their scopes
items             a copy of the catalogue topic; `written` is the time of the newest record
users             users with feedback or named interests
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Float,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
)


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
    Column("lists", BigInteger, nullable=False),
    Column("clicked", BigInteger, nullable=False),
    Column("clicks", BigInteger, nullable=False),
    Column("purchased", BigInteger, nullable=False),
)

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
    Index(None, "at"),
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

"""Tables of version 0.1.0: rules, experiments, request log, API keys, catalogue copy, users."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from serving.control.store import UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rules",
        sa.Column("rule_id", sa.String(64), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("query", sa.JSON, nullable=False),
        sa.Column("amount", sa.Float),
        sa.Column("position", sa.Integer),
        sa.Column("starts", UtcDateTime),
        sa.Column("ends", UtcDateTime),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("rule_id", name="pk_rules"),
    )
    op.create_table(
        "experiments",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("metric", sa.String(32), nullable=False),
        sa.Column("plan", sa.JSON, nullable=False),
        sa.Column("days", sa.Integer, nullable=False),
        sa.Column("salt", sa.String(64), nullable=False),
        sa.Column("traffic", sa.Float, nullable=False),
        sa.Column("arms", sa.JSON, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created", UtcDateTime, nullable=False),
        sa.Column("stopped", UtcDateTime),
        sa.PrimaryKeyConstraint("name", name="pk_experiments"),
    )
    op.create_table(
        "experiment_users",
        sa.Column("experiment", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(128), nullable=False),
        sa.Column("arm", sa.String(64), nullable=False),
        sa.Column("first_shown", UtcDateTime, nullable=False),
        sa.Column("lists", sa.BigInteger, nullable=False),
        sa.Column("fallback_lists", sa.BigInteger, nullable=False),
        sa.Column("clicks", sa.BigInteger, nullable=False),
        sa.Column("purchases", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("experiment", "user_id", name="pk_experiment_users"),
    )
    op.create_index("ix_experiment_users_user_id", "experiment_users", ["user_id"])
    progress = op.create_table(
        "experiment_progress",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("positions", sa.JSON, nullable=False),
        sa.Column("counted_until", UtcDateTime),
        sa.PrimaryKeyConstraint("id", name="pk_experiment_progress"),
    )
    op.bulk_insert(progress, [{"id": 1, "version": 0, "positions": {}, "counted_until": None}])
    op.create_table(
        "request_log",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("method", sa.String(16), nullable=False),
        sa.Column("route", sa.String(128), nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False),
        sa.Column("milliseconds", sa.Float, nullable=False),
        sa.Column("caller", sa.String(128)),
        sa.PrimaryKeyConstraint("id", name="pk_request_log"),
    )
    op.create_index("ix_request_log_at", "request_log", ["at"])
    op.create_table(
        "api_keys",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created", UtcDateTime, nullable=False),
        sa.Column("revoked", UtcDateTime),
        sa.PrimaryKeyConstraint("name", name="pk_api_keys"),
    )
    op.create_table(
        "items",
        sa.Column("item_id", sa.String(128), nullable=False),
        sa.Column("title", sa.Text),
        sa.Column("categories", sa.JSON, nullable=False),
        sa.Column("brand", sa.Text),
        sa.Column("price", sa.Float),
        sa.Column("written", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("item_id", name="pk_items"),
    )
    op.create_table(
        "users",
        sa.Column("user_id", sa.String(128), nullable=False),
        sa.Column("first_seen", UtcDateTime, nullable=False),
        sa.Column("last_seen", UtcDateTime, nullable=False),
        sa.Column("interests", sa.JSON(none_as_null=True)),
        sa.Column("interests_at", UtcDateTime),
        sa.PrimaryKeyConstraint("user_id", name="pk_users"),
    )
    op.create_index("ix_users_interests_at", "users", ["interests_at"])

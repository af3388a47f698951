"""The copy of the catalogue, and what is known of users."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from serving.control.tables import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
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


def downgrade() -> None:
    op.drop_index("ix_users_interests_at", "users")
    for table in ("users", "items"):
        op.drop_table(table)

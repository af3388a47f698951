"""Revocations of user tokens."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from serving.control.store import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "token_revocations",
        sa.Column("user_id", sa.String(128), nullable=False),
        sa.Column("not_before", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_token_revocations"),
    )
    op.create_index("ix_token_revocations_not_before", "token_revocations", ["not_before"])

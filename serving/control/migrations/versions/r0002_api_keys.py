"""API keys that are made and revoked while the service runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from serving.control.tables import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
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


def downgrade() -> None:
    op.drop_table("api_keys")

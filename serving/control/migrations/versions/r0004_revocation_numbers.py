"""The order in which revocations were written: their times may lie in the past or the future."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    number = sa.Column("number", sa.BigInteger, nullable=False, server_default="1")
    op.add_column("token_revocations", number)
    op.create_index("ix_token_revocations_number", "token_revocations", ["number"])

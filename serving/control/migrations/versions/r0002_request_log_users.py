"""The user and the session that each logged request names, so that both can be erased."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from serving.control.request_log import named_users

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
COLUMNS = ("user_id", "session_id")
BATCH = 5000


def upgrade() -> None:
    for name in COLUMNS:
        op.add_column("request_log", sa.Column(name, sa.String(128)))
    _fill()
    for name in COLUMNS:
        op.create_index(f"ix_request_log_{name}", "request_log", [name])


def _fill() -> None:
    """Read the names out of the rows that there are; those of several users lose their target."""
    table = sa.table(
        "request_log",
        *(sa.column(name) for name in ("id", "route", "target", *COLUMNS)),
    )
    connection, last = op.get_bind(), -1
    named = sa.or_(table.c.target.contains("/users/"), table.c.target.contains("_id="))
    query = sa.select(table.c.id, table.c.route, table.c.target).where(named)
    change = sa.update(table).where(table.c.id == sa.bindparam("row"))
    while rows := connection.execute(
        query.where(table.c.id > last).order_by(table.c.id).limit(BATCH)
    ).all():
        last = rows[-1].id
        changes = []
        for row in rows:
            path, _, text = row.target.partition("?")
            user_id, session_id, ambiguous = named_users(path, text)
            names = (None, None) if ambiguous else (user_id, session_id)
            target = row.route if ambiguous else row.target
            changes.append(
                {"row": row.id, "target": target, **dict(zip(COLUMNS, names, strict=True))}
            )
        connection.execute(change, changes)


def downgrade() -> None:
    for name in COLUMNS:
        op.drop_index(f"ix_request_log_{name}", "request_log")
        op.drop_column("request_log", name)

"""Alembic environment: runs migrations on a given connection, one upgrade at a time."""

from alembic import context
from sqlalchemy import text

from serving.control.store import metadata

connection = context.config.attributes["connection"]
if connection.dialect.name == "postgresql":
    connection.execute(text("SET LOCAL statement_timeout = 0"))  # a migration may take long
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('afterclick migrations'))"))
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()

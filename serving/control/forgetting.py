"""Erase a user from the SQL tables.

writes  sql  experiment_users, request_log, users
"""

from __future__ import annotations

from urllib.parse import quote, quote_plus

from sqlalchemy import delete, or_

from serving.control.store import Database
from serving.control.tables import experiment_users, request_log, users


def forget_user(database: Database, user_id: str) -> int:
    """Delete the user's rows; how many there were. Raises Unavailable.

    Of the request log every row goes whose target contains the id, plain or escaped: where an id is part of
    another's, a few rows too many. What an API counts after this is the user's again.
    """
    spellings = {user_id, quote(user_id, safe=""), quote(user_id), quote_plus(user_id)}
    named = [request_log.c.target.contains(spelling, autoescape=True) for spelling in spellings]
    with database.begin() as connection:
        counted = connection.execute(
            delete(experiment_users).where(experiment_users.c.user_id == user_id)
        )
        known = connection.execute(delete(users).where(users.c.user_id == user_id))
        logged = connection.execute(delete(request_log).where(or_(*named)))
        return counted.rowcount + known.rowcount + logged.rowcount

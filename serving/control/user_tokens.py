"""User tokens: JSON Web Tokens, each for one user, and their revocation.

reads, writes  sql  token_revocations

A revocation ends every token of a user that was issued before it. Each process reads the table
every two seconds and answers from memory; during a database outage the last state stays in force.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import jwt
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection, delete, func, select, text

from afterclick.events import Id, now
from afterclick.settings import ServingSettings
from serving.control.store import insert_into
from serving.control.store import token_revocations as table

MAX_TOKEN_S: Final = 30 * 86_400
"""Longest accepted lifetime of a token; revocations are forgotten after it."""
MAX_REVOCATIONS: Final = 100_000
"""Users with a revocation in memory, some 20 MB. With more, tokens of everyone that are older than
the dropped revocations are refused."""
CLOCK_S: Final = 60.0
"""How far the clocks of the processes and of the shop's server may differ."""
_ALGORITHM: Final = "HS256"
_AUDIENCE: Final = "afterclick"
_CLAIMS: Final = ("sub", "aud", "iat", "exp")
_USER_ID: Final = TypeAdapter(Id)


class UserTokens:
    """Which tokens are valid. `read` is for one thread at a time, `user_of` for any."""

    def __init__(self, settings: ServingSettings, max_revocations: int = MAX_REVOCATIONS) -> None:
        secrets = (settings.token_secret, settings.token_secret_previous)
        self._secrets = [secret for secret in secrets if secret]
        self._max = max_revocations
        self._revoked: dict[str, float] = {}
        """User id → time of the revocation, seconds since the epoch; replaced, never modified."""
        self._all_before = 0.0
        self._last = 0
        """The number of the newest revocation that was read."""

    @property
    def accepted(self) -> bool:
        """Whether there is a secret."""
        return bool(self._secrets)

    def __len__(self) -> int:
        return len(self._revoked)

    def user_of(self, token: bytes) -> str | None:
        """The user of a token; None for a forged, expired, revoked or malformed token."""
        claims = next(filter(None, (_claims(token, secret) for secret in self._secrets)), None)
        if claims is None:
            return None
        user_id, issued = str(claims["sub"]), float(claims["iat"])
        valid = issued >= self._revoked.get(user_id, self._all_before)
        return user_id if valid else None

    def read(self, connection: Connection) -> None:
        """Read the revocations that were written since the last call, whatever their times."""
        newest = connection.scalar(select(func.max(table.c.number))) or 0
        if newest == self._last:
            return
        since = self._last if newest > self._last else 0  # of a restored table every row
        oldest = now() - timedelta(seconds=MAX_TOKEN_S)
        query = (
            select(table.c.user_id, table.c.not_before)
            .where(table.c.number > since, table.c.not_before > oldest)
            .order_by(table.c.not_before.desc())
            .limit(self._max + 1)
        )
        rows = {row.user_id: row.not_before.timestamp() for row in connection.execute(query)}
        self._merge(rows, oldest.timestamp())
        self._last = newest

    def _merge(self, rows: dict[str, float], oldest: float) -> None:
        newer = {name: max(at, self._revoked.get(name, at)) for name, at in rows.items()}
        merged = (self._revoked | newer).items()
        newest_first = sorted(
            ((at, user_id) for user_id, at in merged if at > oldest), reverse=True
        )
        if len(newest_first) > self._max:
            self._all_before = newest_first[self._max][0]
        self._revoked = {user_id: at for at, user_id in newest_first[: self._max]}


def new_token(secret: str, user_id: str, seconds: float) -> tuple[str, int]:
    """A JSON Web Token (RFC 7519) for one user, and its expiry in seconds since the epoch.

    HS256 with `sub` the user id, `aud` afterclick, `iat` and `exp`: the shop's server may sign
    tokens itself. A token allows lists and feedback for its user, and nothing else.
    """
    issued = time.time()
    expires = int(issued + seconds)
    claims = {"sub": user_id, "aud": _AUDIENCE, "iat": issued, "exp": expires}
    return jwt.encode(claims, secret, _ALGORITHM), expires


def revoke_tokens(connection: Connection, until: Mapping[str, datetime]) -> None:
    """Revoke the tokens of these users that were issued before a time, now at the latest.

    Later tokens stay valid, and no token of an earlier revocation becomes valid again.
    """
    at = now()
    oldest = at - timedelta(seconds=MAX_TOKEN_S)
    rows = [
        {"user_id": user_id, "not_before": min(before, at)}
        for user_id, before in until.items()
        if before > oldest
    ]
    if not rows:
        return
    if connection.dialect.name == "postgresql":  # a reader must see the numbers in their order
        connection.execute(text(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE"))
    newest = select(func.max(table.c.number)).scalar_subquery()
    insert = insert_into(connection, table).values(number=func.coalesce(newest, 0) + 1)
    new = insert.excluded
    changed = {"not_before": new.not_before, "number": new.number}
    upsert = insert.on_conflict_do_update(
        index_elements=["user_id"], set_=changed, where=table.c.not_before < new.not_before
    )
    connection.execute(upsert, rows)
    connection.execute(delete(table).where(table.c.not_before < oldest, table.c.number < newest))


def _claims(token: bytes, secret: str) -> dict[str, Any] | None:
    """The claims of a valid token signed with the secret; None for any other.

    PyJWT refuses an `iat` ahead of this clock by milliseconds: it is checked here instead.
    """
    options: Any = {"require": _CLAIMS, "verify_iat": False}
    try:
        claims: dict[str, Any] = jwt.decode(
            token, secret, [_ALGORITHM], audience=_AUDIENCE, options=options
        )
        _USER_ID.validate_python(claims["sub"])
        issued, expires = float(claims["iat"]), float(claims["exp"])
    except (jwt.InvalidTokenError, ValidationError, TypeError, ValueError, OverflowError):
        return None
    lives = issued <= time.time() + CLOCK_S and expires - issued <= MAX_TOKEN_S
    return claims if lives else None

"""Tokens for browsers: signed, short-lived, and good for one user only.

A JSON Web Token (RFC 7519), HS256, with `sub` the user's id, `aud` afterclick, and `exp`. The shop's own
server may sign them with the same secret, in any language. A token may ask for lists and give feedback, for
its user or for nobody in particular, and nothing else.
"""

from __future__ import annotations

import time
from typing import Any, Final

import jwt
from pydantic import TypeAdapter, ValidationError

from afterclick.events import Id
from afterclick.settings import ApiScope

ALGORITHM: Final = "HS256"
AUDIENCE: Final = "afterclick"
SCOPES: Final[tuple[ApiScope, ...]] = ("recommend", "feedback")
LONGEST_S: Final = 30 * 86_400
_ID: Final = TypeAdapter(Id)


def new_token(secret: str, user_id: str, seconds: float) -> tuple[str, int]:
    """A token for a user, and when it ends, in seconds since the epoch."""
    expires = int(time.time() + seconds)
    claims = {"sub": user_id, "aud": AUDIENCE, "exp": expires}
    return jwt.encode(claims, secret, ALGORITHM), expires


def user_of(secret: str, token: bytes) -> str | None:
    """The user of a token; None for one that is forged, has ended, or is none."""
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            secret,
            [ALGORITHM],
            audience=AUDIENCE,
            options={"require": ["sub", "aud", "exp"]},
        )
        return _ID.validate_python(claims["sub"])
    except (jwt.InvalidTokenError, ValidationError):
        return None


def is_token(key: bytes) -> bool:
    """Whether what was given looks like a token; API keys have no dots."""
    return key.count(b".") == 2

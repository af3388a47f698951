"""API keys: the settings' own, and those in SQL that are made and revoked while the service runs.

reads, writes  sql  api_keys

Only the SHA-256 of a key is kept. A process reads the table every two seconds and asks from memory; while the
database is away the keys read last hold. A key that is revoked keeps its row, so that a service that once
asked for keys never answers everyone again.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from afterclick.errors import AlreadyThere, NotFound
from afterclick.events import now
from afterclick.settings import ApiKey, ApiScope, ServingSettings
from serving.control.reading import readable
from serving.control.rules import Name, Text
from serving.control.store import Database
from serving.control.tables import api_keys as table

Scopes = Annotated[tuple[ApiScope, ...], Field(min_length=1, max_length=3)]
Found = tuple[str | None, tuple[ApiScope, ...] | None]


class KeyDraft(BaseModel):
    """A key as it is asked for."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"name": "shop", "scopes": ["recommend"]}]},
    )

    name: Name = Field(description="What it is for; the request log names it. A name is used once.")
    scopes: Scopes = Field(
        ("recommend", "feedback"), description="What it may do; `admin` may do everything."
    )
    note: Text = ""


class KeptKey(KeyDraft):
    """A key as it is kept: never the key itself."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    created: AwareDatetime
    revoked: AwareDatetime | None = None

    @classmethod
    def of(cls, draft: KeyDraft) -> tuple[Self, str]:
        """A new key's row, and the key, which nobody can be told again."""
        key, sha256 = new_key()
        return cls(**draft.model_dump(), sha256=sha256, created=now()), key


class KeyRing:
    """The keys in force. `take` swaps them whole, from any thread; requests read."""

    def __init__(self, settings: ServingSettings) -> None:
        self._own = settings.keys
        self._in_force = dict(settings.keys)
        self.kept: tuple[KeptKey, ...] = ()
        self.known = False
        """Whether the database ever said which keys there are."""
        self._asks = bool(settings.keys or settings.token_secret)
        self._open = settings.open

    @property
    def needed(self) -> bool:
        """Whether requests have to show a key or a token."""
        return self._asks or bool(self.kept)

    @property
    def unsure(self) -> bool:
        """Whether there may be keys that nobody has read yet: then nobody unknown may be let in."""
        return not (self.known or self._open)

    def take(self, kept: Sequence[KeptKey]) -> None:
        """Go by these keys, and by the settings'."""
        living = {
            k.name: ApiKey(sha256=k.sha256, scopes=k.scopes) for k in kept if k.revoked is None
        }
        self._in_force, self.kept, self.known = {**living, **self._own}, tuple(kept), True

    def find(self, key: bytes) -> Found:
        """Name and scopes of a key. Compares with every key, each in constant time."""
        digest = hashlib.sha256(key).hexdigest()
        found: Found = (None, None)
        for name, known in self._in_force.items():
            if hmac.compare_digest(known.sha256, digest):
                found = (name, known.scopes)
        return found

    def takes(self, name: str) -> None:
        """Raises AlreadyThere where the settings have a key of this name."""
        if name in self._own:
            raise AlreadyThere(f"the settings have a key {name} already: take another name")


def new_key() -> tuple[str, str]:
    """A new key and its SHA-256: the key is shown once, the hash is what is kept."""
    key = f"ac_{secrets.token_urlsafe(32)}"
    return key, hashlib.sha256(key.encode()).hexdigest()


def read_keys(connection: Connection) -> tuple[KeptKey, ...]:
    """Every key, the oldest first, revoked ones among them."""
    rows = connection.execute(select(table).order_by(table.c.created, table.c.name)).mappings()
    return tuple(readable(KeptKey, rows))


def add_key(database: Database, draft: KeyDraft) -> tuple[KeptKey, str]:
    """Keep a new key; its row and itself. Raises AlreadyThere where its name was used before, Unavailable."""
    kept, key = KeptKey.of(draft)
    row: dict[str, Any] = kept.model_dump() | {"scopes": list(kept.scopes)}
    try:
        with database.begin() as connection:
            connection.execute(insert(table), [row])
    except IntegrityError:
        raise AlreadyThere(f"there was a key {draft.name} already: take another name") from None
    return kept, key


def revoke_key(database: Database, name: str) -> None:
    """End a key. Raises NotFound where none by that name is in force, Unavailable."""
    living = (table.c.name == name) & table.c.revoked.is_(None)
    with database.begin() as connection:
        if not connection.execute(update(table).where(living).values(revoked=now())).rowcount:
            raise NotFound(f"no key {name} is in force in SQL")

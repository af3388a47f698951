"""API keys: those of the settings, and those in SQL, created and revoked while the API runs.

reads, writes  sql  api_keys

Only the SHA-256 of a key is stored. Each process reads the table every two seconds and answers
from memory; during a database outage the last keys stay valid. A revoked key keeps its row, so
that an API that once required keys never becomes open again.
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
from serving.control.rules import Name, Text
from serving.control.store import Database, readable
from serving.control.store import api_keys as table

Scopes = Annotated[tuple[ApiScope, ...], Field(min_length=1, max_length=3)]
KeyOwner = tuple[str | None, tuple[ApiScope, ...] | None]
"""Name and scopes; None and None for an unknown key."""


class KeyDraft(BaseModel):
    """A new API key."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"name": "shop", "scopes": ["recommend"]}]},
    )

    name: Name = Field(description="Shown in the request log; unique, also among revoked keys.")
    scopes: Scopes = Field(
        ("recommend", "feedback"), description="What it allows; `admin` allows everything."
    )
    note: Text = ""


class StoredKey(KeyDraft):
    """A key in SQL, by its hash."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    created: AwareDatetime
    revoked: AwareDatetime | None = None

    @classmethod
    def of(cls, draft: KeyDraft) -> tuple[Self, str]:
        """A new row, and the key itself, which is not stored."""
        key, sha256 = new_key()
        return cls(**draft.model_dump(), sha256=sha256, created=now()), key


class ApiKeyStore:
    """The valid keys. `replace` swaps them as a whole, from any thread; requests read."""

    def __init__(self, settings: ServingSettings) -> None:
        self._from_settings = settings.keys
        self._valid = dict(settings.keys)
        self._always_required = bool(settings.keys or settings.token_secret)
        self._open = settings.open
        self._read = False
        self.stored: tuple[StoredKey, ...] = ()

    @property
    def required(self) -> bool:
        """Whether requests need a key or a token."""
        return self._always_required or bool(self.stored)

    @property
    def uncertain(self) -> bool:
        """True until the key table has been read once; unknown callers are rejected meanwhile."""
        return not (self._read or self._open)

    def replace(self, stored: Sequence[StoredKey]) -> None:
        """Use these keys of SQL, and those of the settings."""
        valid = {
            k.name: ApiKey(sha256=k.sha256, scopes=k.scopes) for k in stored if k.revoked is None
        }
        self._valid, self.stored = {**valid, **self._from_settings}, tuple(stored)
        self._read = True

    def find(self, key: bytes) -> KeyOwner:
        """Owner of a key. Compares with every key, each in constant time."""
        digest = hashlib.sha256(key).hexdigest()
        owner: KeyOwner = (None, None)
        for name, valid in self._valid.items():
            if hmac.compare_digest(valid.sha256, digest):
                owner = (name, valid.scopes)
        return owner

    def reserve(self, name: str) -> None:
        """Raises AlreadyThere if the settings have a key of this name."""
        if name in self._from_settings:
            raise AlreadyThere(f"the settings already have a key {name}: choose another name")


def new_key() -> tuple[str, str]:
    """A new key and its SHA-256."""
    key = f"ac_{secrets.token_urlsafe(32)}"
    return key, hashlib.sha256(key.encode()).hexdigest()


def read_keys(connection: Connection) -> tuple[StoredKey, ...]:
    """Every key, revoked ones included, oldest first."""
    rows = connection.execute(select(table).order_by(table.c.created, table.c.name)).mappings()
    return tuple(readable(StoredKey, rows))


def add_key(database: Database, draft: KeyDraft) -> tuple[StoredKey, str]:
    """Store a new key; its row and the key. Raises AlreadyThere for a used name, Unavailable."""
    stored, key = StoredKey.of(draft)
    row: dict[str, Any] = stored.model_dump() | {"scopes": list(stored.scopes)}
    try:
        with database.begin() as connection:
            connection.execute(insert(table), [row])
    except IntegrityError:
        raise AlreadyThere(f"key {draft.name} already exists: choose another name") from None
    return stored, key


def revoke_key(database: Database, name: str) -> None:
    """Revoke a key. Raises NotFound if no valid key in SQL has this name, Unavailable."""
    valid = (table.c.name == name) & table.c.revoked.is_(None)
    with database.begin() as connection:
        if not connection.execute(update(table).where(valid).values(revoked=now())).rowcount:
            raise NotFound(f"no valid key {name} in SQL")

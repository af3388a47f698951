"""API keys: those of the settings, and those in SQL, created and revoked while the API runs.

reads, writes  sql  api_keys

Only the SHA-256 of a key is stored. Each process reads the table every two seconds and answers
from memory; during a database outage the last keys stay valid.

Once there was a key the API never becomes open again. A revoked key keeps its row, a row that
cannot be read counts as one, and a file in the home folder (`KEYS_REQUIRED`) records that keys are
required, so that a lost, restored or emptied table rejects every caller instead of none.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, Self

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from afterclick.errors import AlreadyThere, NotFound
from afterclick.events import now
from afterclick.io.connections import is_loopback
from afterclick.settings import ApiKey, ApiScope, ServingSettings
from serving.control.rules import Name, Text
from serving.control.store import Database, readable
from serving.control.store import api_keys as table

log = structlog.get_logger()
KEYS_REQUIRED: Final = "api-keys-required"
"""File in the home folder: there was an API key in SQL. Delete it to give up authentication."""
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


class KeyTable(NamedTuple):
    """What the table holds."""

    keys: tuple[StoredKey, ...]
    """Every key that this version can read, revoked ones included, oldest first."""
    rows: int


class ApiKeyStore:
    """The valid keys. `replace` swaps them as a whole, from any thread; requests read."""

    def __init__(self, settings: ServingSettings, home: Path) -> None:
        self._from_settings = settings.keys
        self._valid = dict(settings.keys)
        self._marker = home / KEYS_REQUIRED
        beyond_loopback = not (settings.open or is_loopback(settings.host))
        self._open = settings.open
        self._read = False
        self.required = bool(
            settings.keys
            or settings.token_secret
            or settings.require_keys
            or beyond_loopback
            or self._marker.exists()
        )
        """Whether requests need a key or a token; once true, always true."""
        self.stored: tuple[StoredKey, ...] = ()

    @property
    def uncertain(self) -> bool:
        """True until the key table has been read once; unknown callers are rejected meanwhile."""
        return not (self._read or self._open)

    def replace(self, table: KeyTable) -> None:
        """Use these keys of SQL, and those of the settings."""
        valid = {
            k.name: ApiKey(sha256=k.sha256, scopes=k.scopes)
            for k in table.keys
            if k.revoked is None
        }
        if len(table.keys) < len(self.stored):
            log.error("API keys lost from the database", before=len(self.stored), rows=table.rows)
        self._valid, self.stored = {**valid, **self._from_settings}, table.keys
        if table.rows:
            self._require()  # after the keys are known: requests arrive meanwhile
        self._read = True

    def _require(self) -> None:
        """Require keys from now on, also after a restart with an empty database."""
        self.required = True
        if self._marker.exists():
            return
        try:
            self._marker.parent.mkdir(parents=True, exist_ok=True)
            self._marker.touch()
        except OSError as error:
            log.warning(
                "cannot record that keys are required: set AFTERCLICK_SERVING__REQUIRE_KEYS=true",
                file=str(self._marker),
                error=str(error),
            )

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


def read_keys(connection: Connection) -> KeyTable:
    """The keys in SQL."""
    query = select(table).order_by(table.c.created, table.c.name)
    rows = connection.execute(query).mappings().all()
    return KeyTable(tuple(readable(StoredKey, rows)), len(rows))


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

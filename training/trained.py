"""How far the last training read that went through: its model was published, or the gate refused it.

writes  json  <home>/trained.json

One that failed does not count: what it read makes the next one due.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from training.candidate import Facts


class Trained(BaseModel):
    """What went through last."""

    model_config = ConfigDict(frozen=True)

    version: str
    positions: dict[str, int]
    """topic/partition → the highest offset it read"""

    @classmethod
    def of(cls, facts: Facts) -> Self:
        """A candidate on which there is a decision."""
        return cls(version=facts.version, positions=facts.lineage["positions"])

    @classmethod
    def read(cls, home: Path) -> Self | None:
        """None where nothing has gone through yet."""
        try:
            return cls.model_validate_json(_path(home).read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, home: Path) -> None:
        staging = home / f".trained.{os.getpid()}"
        staging.write_text(self.model_dump_json())
        staging.replace(_path(home))


def _path(home: Path) -> Path:
    return home / "trained.json"

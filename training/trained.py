"""How far the last training read that went through: its model was published, or the gate refused it.

writes  json  <home>/trained.json

One that failed does not count: what it read makes the next one due.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from afterclick.io.home import HomeFile
from training.challenger import RunMetadata


class Trained(HomeFile):
    """What went through last."""

    version: str
    positions: dict[str, int]
    """topic/partition → the highest offset it read"""

    @classmethod
    def path(cls, home: Path) -> Path:
        return home / "trained.json"

    @classmethod
    def of(cls, facts: RunMetadata) -> Self:
        """A candidate on which there is a decision."""
        return cls(version=facts.version, positions=facts.lineage["positions"])

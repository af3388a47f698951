"""How the two towers are learned; training/two_tower.py learns them, with torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TowerConfig:
    """How the towers are learned."""

    dim: int = 64
    """Width of both towers."""
    temperature: float = 0.12
    """Cosines are divided by this."""
    dropout: float = 0.1
    """Share of a history's items left out at random, the newest excepted."""
    rate: float = 0.003
    """Adam's learning rate."""
    decay: float = 1e-4
    """AdamW's weight decay, per step."""
    epochs: int = 6
    batch: int = 1024
    uniform: int = 1024
    """Items drawn uniformly beside the batch's own."""
    half_life_days: float = 365.0
    """A target this much older than the newest is drawn half as often."""
    least: int = 5
    """Interactions an item needs to be a target."""
    threads: int = 1
    """Two wait for one another: beside other work they cost seven times the processor time of one."""
    seed: int = 42

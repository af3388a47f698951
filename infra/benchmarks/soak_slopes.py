"""Growth of memory and folders during `afterclick bench soak`.

The slope is that of Theil and Sen, the median of the slopes between all pairs of points, with its
95 % interval; a point is the mean of a few successive samples, because single ones depend on one
another.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import theilslopes

from afterclick.io.home import StackRecord
from infra.benchmarks.harness import Figures

POINTS = 24
"""Points of a slope, at most."""
_LEAST = 8
"""Samples that a slope needs."""
_SETTLE_S = 360.0
"""The caches of a process fill in its first minutes."""
_HOUR_S = 3600.0
_MIB = 2**20


class SizeSample(NamedTuple):
    """A value at a time; `of` is the process to which it belongs."""

    time_s: float
    mb: float
    of: int = 0


class Slope(NamedTuple):
    """MB per hour, and its 95 % interval."""

    slope: float
    low: float
    high: float


@dataclass
class GrowthSamples:
    """Memory by service and size by folder of a stack, once `warm_up_s` have passed."""

    warm_up_s: float
    memory: dict[str, list[SizeSample]] = field(default_factory=dict)
    folders: dict[str, list[SizeSample]] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    def take(self, record: StackRecord) -> None:
        """Add a sample of each service and folder."""
        now = time.monotonic() - self._began
        for part in record.parts:
            if part.memory_mib is not None and part.pid is not None:
                sample = SizeSample(now, part.memory_mib, part.pid)
                self.memory.setdefault(part.name, []).append(sample)
        for folder in Path(record.home).iterdir():
            if folder.is_dir():
                sample = SizeSample(now, folder_bytes(folder) / _MIB)
                self.folders.setdefault(folder.name, []).append(sample)

    def figures(self) -> Figures:
        """Slopes by service, over its longest time without a restart, and by folder."""
        memory = {name: self._slope(longest_life(found)) for name, found in self._warm(self.memory)}
        folders = {name: self._slope(found) for name, found in self._warm(self.folders)}
        known = [found for found in memory.values() if found is not None]
        return {
            "rss_slope_mb_per_hour": _as_json(memory),
            "worst_rss_slope_low": max((found.low for found in known), default=0.0),
            "disk_slope_mb_per_hour": _as_json(folders),
        }

    def _warm(self, samples: dict[str, list[SizeSample]]) -> Iterator[tuple[str, list[SizeSample]]]:
        """The samples after the warm-up."""
        for name, found in samples.items():
            yield name, [each for each in found if each.time_s >= self.warm_up_s]

    def _slope(self, samples: Sequence[SizeSample]) -> Slope | None:
        """None with too few samples."""
        return slope(samples) if len(samples) >= _LEAST else None


def slope(samples: Sequence[SizeSample]) -> Slope:
    """The slope of these samples."""
    groups = np.array_split(np.array([each[:2] for each in samples]), min(len(samples), POINTS))
    points = np.array([group.mean(axis=0) for group in groups])
    found = theilslopes(points[:, 1], points[:, 0] / _HOUR_S)
    return Slope(*(round(float(value), 1) for value in (found[0], found[2], found[3])))


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder; files may vanish meanwhile."""
    return sum(_sizes(folder))


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        try:
            yield path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue


def longest_life(samples: Sequence[SizeSample]) -> list[SizeSample]:
    """The samples of the process that lived longest, without its first minutes."""
    lives = [list(life) for _, life in groupby(samples, lambda each: each.of)]
    settled = [
        [each for each in life if each.time_s >= life[0].time_s + _SETTLE_S] for life in lives
    ]
    return max(settled, key=len, default=[])


def _as_json(slopes: dict[str, Slope | None]) -> Figures:
    return {name: None if found is None else found._asdict() for name, found in slopes.items()}

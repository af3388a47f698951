"""`afterclick benchmark` on a made-up split as large as it promises to take: how long, how much memory.

Each user's taste is a few of many topics; what they buy is mostly from those, by popularity there, else
by popularity in the whole shop.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import psutil

from afterclick.errors import BadInput
from training.benchmark import registry

PER_TOPIC, TASTE, LOYAL = 125, 4, 0.7
"""Items of a topic, topics of a user, and the share of interactions that come from those."""
TAIL = 0.8
"""Exponent of the items' popularity by rank."""
TEST = 0.2
"""Share of the pairs that is kept for the test, at random."""


@dataclass(frozen=True)
class Bench:
    """What to measure."""

    model: str
    users: int = 50_000
    items: int = 50_000
    interactions: int = 1_000_000
    """Drawn; those drawn twice count once."""
    trials: int = 40
    seed: int = 42


def run(bench: Bench) -> dict[str, Any]:
    """What `afterclick benchmark --json` says; `seconds` and `cpu_s` are of that whole command."""
    registry.check(bench.model)
    with tempfile.TemporaryDirectory() as folder:
        write(bench, Path(folder))
        asked = ["--split", folder, "--model", bench.model, "--trials", str(bench.trials), "--json"]
        start, before = time.monotonic(), _children_s()
        done = subprocess.run(
            [sys.executable, "-m", "infra", "benchmark", *asked],
            stdout=subprocess.PIPE,
            check=False,
        )
        seconds, cpu_s = time.monotonic() - start, _children_s() - before
    if done.returncode:
        raise BadInput(
            f"afterclick benchmark --model {bench.model} ended with exit status {done.returncode}"
        )
    found: dict[str, Any] = orjson.loads(done.stdout.splitlines()[-1])
    return {**found, "seconds": round(seconds, 1), "cpu_s": round(cpu_s, 1)}


def _children_s() -> float:
    """Processor seconds of the child processes that have ended."""
    times = psutil.Process().cpu_times()
    return times.children_user + times.children_system


def write(bench: Bench, folder: Path) -> None:
    """`train.csv.gz` and `test.csv.gz` of about as many different pairs as `bench` says, with timestamps."""
    pairs = made(bench)
    test = np.random.default_rng(bench.seed + 1).random(len(pairs)) < TEST
    pairs[~test].to_csv(folder / "train.csv.gz", index=False)
    pairs[test].to_csv(folder / "test.csv.gz", index=False)


def made(bench: Bench) -> pd.DataFrame:
    """Columns user_id, item_id, timestamp; in order of time, each pair once."""
    random, n = np.random.default_rng(bench.seed), bench.interactions
    topics = max(1, bench.items // PER_TOPIC)
    weight = np.arange(1, bench.items + 1) ** -TAIL
    topic = np.arange(bench.items) % topics
    taste = random.integers(0, topics, (bench.users, TASTE))
    user = random.integers(0, bench.users, n)
    by_topic = np.argsort(topic, kind="stable")
    ends = np.cumsum(weight[by_topic])
    sums = np.bincount(topic, weights=weight)
    chosen = taste[user, random.integers(0, TASTE, n)]
    within = (np.cumsum(sums) - sums)[chosen] + random.random(n) * sums[chosen]
    where = np.where(random.random(n) < LOYAL, within, random.random(n) * ends[-1])
    item = by_topic[np.minimum(np.searchsorted(ends, where, side="right"), bench.items - 1)]
    pairs = pd.DataFrame(
        {"user_id": user, "item_id": item, "timestamp": 1_400_000_000 + np.arange(n)}
    )
    pairs = pairs.drop_duplicates(["user_id", "item_id"], ignore_index=True)
    return pairs.assign(
        user_id="u" + pairs["user_id"].astype(str), item_id="i" + pairs["item_id"].astype(str)
    )

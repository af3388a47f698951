"""Choose a dataset and split it by time: the hidden command `afterclick split-dataset`.

A separate process, because reading a dataset takes memory that the supervisor should not keep.

reads   file    the dataset
writes  stdout  one JSON object
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from afterclick.errors import BadDataset

if TYPE_CHECKING:
    from ingest.datasets import ResolvedDataset


class TimeSplit(BaseModel):
    """A dataset in two parts: the history before `until_ms`, and the live part from then on."""

    model_config = ConfigDict(frozen=True)

    path: str
    name: str
    why: str
    rows: int
    bad: int
    history: int
    """Rows of the history."""
    until_ms: int
    user: str
    """The most active user in the newest tenth of the history."""


def find_split(home: Path, live_share: float, dataset: str | None) -> TimeSplit:
    """Run the command in a process; downloads show their progress on standard error. Raises
    BadDataset.
    """
    command = [sys.executable, "-m", "infra", "split-dataset", str(home), str(live_share)]
    command += [dataset] if dataset else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BadDataset("the demo needs a dataset: see the error above")
    return TimeSplit.model_validate_json(done.stdout.splitlines()[-1])


def split(choice: ResolvedDataset, home: Path, live_share: float) -> TimeSplit:
    """Split between two timestamps, so that equal times are on one side."""
    import numpy as np
    import pyarrow as pa

    from ingest.sorting import sort_by_time

    data = sort_by_time(choice.dataset, home)
    batches = list(data.batches())
    times = np.concatenate([batch["time_ms"].to_numpy() for batch in batches])
    until = int(times[int(len(times) * (1 - live_share))])
    history = int(np.searchsorted(times, until, side="left"))
    newest = max(1, history // 10)
    users = pa.Table.from_batches(batches)["user_id"].slice(history * 9 // 10, newest)
    return TimeSplit(
        path=str(choice.dataset.path.absolute()),
        name=data.manifest.name,
        why=choice.why,
        rows=len(times),
        bad=data.manifest.bad,
        history=history,
        until_ms=until,
        user=Counter(users.to_pylist()).most_common(1)[0][0],
    )

"""Choose the dataset and say where its history ends: `python -m infra.stack.cut <home> <share> [<dataset>]`.

A process of its own, because reading a dataset takes memory that the supervisor should not keep.

reads   file    the dataset
writes  stdout  one JSON object
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from afterclick.errors import BadDataset


@dataclass(frozen=True)
class Cut:
    """A dataset in two: the history before `until_ms`, and the live part from there on."""

    path: str
    name: str
    why: str
    rows: int
    bad: int
    history: int
    until_ms: int
    user: str
    """Someone whose list is worth asking for: busy in the newest tenth of the history."""


def find_cut(home: Path, live_share: float, dataset: str | None) -> Cut:
    """Run `cut` in a process of its own; downloads show their progress on standard error.

    Raises BadDataset with what that process said.
    """
    command = [sys.executable, "-m", "infra.stack.cut", str(home), str(live_share)]
    command += [dataset] if dataset else []
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode:
        raise BadDataset("no demo without a dataset")
    return Cut(**json.loads(answer.stdout.splitlines()[-1]))


def cut(home: Path, live_share: float, named: Path | None) -> Cut:
    """Cut between two days, so that rows of one time are on one side."""
    import numpy as np
    import pyarrow as pa

    from infra.commands.data import choose
    from ingest.sorting import sort_by_time

    choice = choose(named)
    data = sort_by_time(choice.dataset, home)
    batches = list(data.batches())
    times = np.concatenate([batch["time_ms"].to_numpy() for batch in batches])
    until = int(times[int(len(times) * (1 - live_share))])
    history = int(np.searchsorted(times, until, side="left"))
    users = pa.Table.from_batches(batches)["user_id"].slice(
        history * 9 // 10, max(1, history // 10)
    )
    busiest = Counter(users.to_pylist()).most_common(1)[0][0]
    manifest = data.manifest
    path = str(choice.dataset.path.absolute())
    return Cut(path, manifest.name, choice.why, len(times), manifest.bad, history, until, busiest)


def main(home: str, live_share: str, dataset: str | None = None) -> None:
    """Print the cut; an error becomes one line."""
    from infra.cli import shown_as_one_line

    with shown_as_one_line():
        found = cut(Path(home), float(live_share), Path(dataset) if dataset else None)
        print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main(*sys.argv[1:])

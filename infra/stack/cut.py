"""Where the history ends and the live part begins: `python -m infra.stack.cut <dataset> <home> <share>`.

A process of its own, because reading a dataset takes memory that the supervisor should not keep.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from infra.cli import shown_as_one_line
from ingest.datasets import open_dataset
from ingest.ordered import prepare


def cut(path: Path, home: Path, live_share: float) -> dict[str, Any]:
    """The event time (ms) that begins the newest `live_share` of the rows, and a user to show.

    The cut falls between two days, so that rows of one time are on one side.
    """
    data = prepare(open_dataset(path), home)
    batches = list(data.batches())
    times = np.concatenate([batch["time_ms"].to_numpy() for batch in batches])
    until = int(times[int(len(times) * (1 - live_share))])
    history = int(np.searchsorted(times, until, side="left"))
    return {
        "name": data.facts.name,
        "rows": len(times),
        "bad": data.facts.bad,
        "history": history,
        "until_ms": until,
        "user": _busy_user(batches, history),
    }


def _busy_user(batches: list[pa.RecordBatch], history: int) -> str:
    """The user with the most events in the newest tenth of the history."""
    users = pa.Table.from_batches(batches)["user_id"].slice(history * 9 // 10, max(1, history // 10))
    return str(Counter(users.to_pylist()).most_common(1)[0][0])


if __name__ == "__main__":
    with shown_as_one_line():
        print(json.dumps(cut(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))))

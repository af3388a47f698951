"""Take a user's rows out of the Parquet log's files.

reads, writes  parquet  <archive>/log_day=*/*.parquet, and the sizes in <archive>/_spark_metadata
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from afterclick.errors import BadInput


def erase(archive: str, user_id: str, until_ms: int) -> int:
    """Rewrite the files that have rows of a user up to an event time, without them; how many rows that were.

    Logs that were set aside are cleaned too. Raises BadInput where the log is not on this machine.
    """
    if "://" in archive:
        raise BadInput(
            f"the log in {archive} is not a folder here: delete the rows of {user_id!r} there yourself"
        )
    folder, erased = Path(archive), 0
    for log in (folder, *folder.parent.glob(f"{folder.name}.[0-9]*")):
        for path in sorted(log.glob("log_day=*/*.parquet")):
            erased += _rewrite(path, user_id, until_ms)
        _correct_sizes(log)
    return erased


def _rewrite(path: Path, user_id: str, until_ms: int) -> int:
    """Write a file anew without the user's rows, in the place of the old one. Nothing where it has none."""
    users = pq.read_table(path, columns=["user_id"], partitioning=None)
    if not pc.any(pc.equal(users["user_id"], user_id)).as_py():
        return 0
    table = pq.read_table(path, partitioning=None)
    until = pa.scalar(until_ms * 1000, pa.timestamp("us", tz="UTC"))
    theirs = pc.and_(
        pc.equal(table["user_id"], user_id),
        pc.less_equal(table["event_time"].cast(until.type), until),
    )
    kept = table.filter(pc.invert(theirs))
    if len(kept) < len(table):
        _replace(path, lambda beside: pq.write_table(kept, beside, flavor="spark"))
    return len(table) - len(kept)


def _correct_sizes(log: Path) -> None:
    """Let the sink's own list say how large the files are now: readers of the log go by it."""
    for listing in sorted((log / "_spark_metadata").glob("[0-9]*")):
        head, *lines = listing.read_text().splitlines()
        corrected = [head, *(_corrected(line) for line in lines)]
        if corrected != [head, *lines]:
            text = "\n".join(corrected)
            _replace(listing, lambda beside, text=text: beside.write_text(text))  # type: ignore[misc]


def _corrected(line: str) -> str:
    entry = json.loads(line)
    path = Path(entry["path"].removeprefix("file://"))
    if not path.exists() or path.stat().st_size == entry["size"]:
        return line
    return json.dumps(entry | {"size": path.stat().st_size}, separators=(",", ":"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside a file and put that in its place; Hadoop's checksum of the old one goes."""
    beside = path.with_name(f".{path.name}.erasing")
    write(beside)
    path.with_name(f".{path.name}.crc").unlink(missing_ok=True)
    beside.replace(path)

"""Files of the Parquet log: which are complete, and how to erase a user's rows.

reads, writes  parquet  <archive>/log_day=*/*.parquet, and the sizes in <archive>/_spark_metadata
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from afterclick.errors import BadInput, StateConflict


def archive_files(folder: str) -> list[str]:
    """The complete files of the log: those that Spark's sink has committed, if it wrote the log.

    Raises StateConflict if there are none.
    """
    archive = Path(folder)
    commits = sorted((archive / "_spark_metadata").glob("[0-9]*"))
    if commits:
        lines = (line for commit in commits for line in commit.read_text().splitlines()[1:])
        files = sorted({json.loads(line)["path"].removeprefix("file://") for line in lines})
    else:
        files = sorted(str(path) for path in archive.glob("log_day=*/*.parquet"))
    if not files:
        raise StateConflict(f"there is no log in {archive} to rebuild the state from")
    return files


def erase(archive: str, user_id: str, until_ms: int) -> int:
    """Rewrite the files without a user's rows up to an event time; returns the number of rows
    erased.

    Includes renamed logs (handover.archive_orphaned_log). Raises BadInput for a log on remote
    storage.
    """
    if "://" in archive:
        raise BadInput(
            f"the log in {archive} is not a local folder: "
            f"delete the rows of {user_id!r} there yourself"
        )
    folder, erased = Path(archive), 0
    for log in (folder, *folder.parent.glob(f"{folder.name}.[0-9]*")):
        for path in sorted(log.glob("log_day=*/*.parquet")):
            erased += _erase_from_file(path, user_id, until_ms)
        _update_sizes(log)
    return erased


def _erase_from_file(path: Path, user_id: str, until_ms: int) -> int:
    """Rewrite one file, if it has rows of the user."""
    users = pq.read_table(path, columns=["user_id"], partitioning=None)
    if not pc.any(pc.equal(users["user_id"], user_id)).as_py():
        return 0
    table = pq.read_table(path, partitioning=None)
    until = pa.scalar(until_ms * 1000, pa.timestamp("us", tz="UTC"))
    forgotten = pc.and_(
        pc.equal(table["user_id"], user_id),
        pc.less_equal(table["event_time"].cast(until.type), until),
    )
    remaining = table.filter(pc.invert(forgotten))
    if len(remaining) < len(table):
        # as in the file read: a time without zone is one of Spark's deprecated type
        deprecated = table["event_time"].type.tz is None
        options = {"flavor": "spark", "use_deprecated_int96_timestamps": deprecated}
        _replace(path, lambda staged: pq.write_table(remaining, staged, **options))
    return len(table) - len(remaining)


def _update_sizes(log: Path) -> None:
    """Update the file sizes in the sink's commits: readers of the log rely on them."""
    for commit in sorted((log / "_spark_metadata").glob("[0-9]*")):
        text = commit.read_text()
        head, *lines = text.splitlines()
        updated = "\n".join([head, *(_with_current_size(line) for line in lines)])
        if updated != text.removesuffix("\n"):
            _write_text(commit, updated)


def _with_current_size(line: str) -> str:
    entry = json.loads(line)
    path = Path(entry["path"].removeprefix("file://"))
    if not path.exists() or path.stat().st_size == entry["size"]:
        return line
    return json.dumps(entry | {"size": path.stat().st_size}, separators=(",", ":"))


def _write_text(path: Path, text: str) -> None:
    _replace(path, lambda staged: staged.write_text(text))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a staged file and rename it; deletes Hadoop's checksum of the old one."""
    staged = path.with_name(f".{path.name}.erasing")
    write(staged)
    path.with_name(f".{path.name}.crc").unlink(missing_ok=True)
    staged.replace(path)

"""What the steps of the pipeline hand to one another: versioned folders that appear whole or not at all.

writes  folder  <root>/<version>/, and <root>/LATEST with the newest version's name
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from afterclick.errors import BadInput

_LATEST = "LATEST"


class MissingStep(BadInput):
    """An earlier step of the pipeline has not been run."""


@contextmanager
def new_version(root: Path, keep: int = 2) -> Iterator[tuple[str, Path]]:
    """Fill a folder in a `with`; then it becomes the latest version, and all but `keep` older ones go."""
    root.mkdir(parents=True, exist_ok=True)
    version = name_now(root)
    staging = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=root))
    try:
        yield version, staging
        staging.chmod(0o755)
        staging.rename(root / version)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    set_latest(root, version)
    _prune(root, version, keep)


def name_now(root: Path) -> str:
    """A version named by the time in UTC that is not taken in `root`."""
    base = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    version, n = base, 1
    while (root / version).exists():
        n += 1
        version = f"{base}-{n}"
    return version


def set_latest(root: Path, version: str) -> None:
    """Let `latest` point to a version, by one rename."""
    pointer = root / f".{_LATEST}.{os.getpid()}"
    pointer.write_text(version)
    pointer.replace(root / _LATEST)


def latest(root: Path, command: str) -> tuple[str, Path]:
    """The newest version in `root` and its folder. Raises MissingStep, naming the command that makes one."""
    pointer = root / _LATEST
    if pointer.is_file():
        version = pointer.read_text().strip()
        if (root / version).is_dir():
            return version, root / version
    raise MissingStep(f"nothing in {root}: run `afterclick {command}` first")


def _prune(root: Path, current: str, keep: int) -> None:
    """Remove old versions, and staging folders that a killed run left more than a day ago."""
    versions = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    for old in [p for p in versions if p.name != current][: -keep or None]:
        shutil.rmtree(old, ignore_errors=True)
    day_ago = datetime.now(UTC).timestamp() - 86_400
    for left in root.glob(".*-*"):
        if left.is_dir() and left.stat().st_mtime < day_ago:
            shutil.rmtree(left, ignore_errors=True)

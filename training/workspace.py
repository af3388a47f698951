"""What the training steps share: versioned folders, the training lock, the status and Spark.

reads   redis   approved items, models
writes  folder  <root>/<version>/, and <root>/LATEST with the newest version's name
        file    <home>/training.lock       held while a training runs
        json    <home>/last_training.json  LastTraining
                <home>/anchor.json         Anchor
                <home>/retrain.json        afterclick.io.home.TrainingStatus
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import structlog
from redis.exceptions import RedisError

from afterclick.errors import BadInput
from afterclick.io.files import (
    PRIVATE,
    file_lock,
    lock_owner,
    private_folder,
    staged_folder,
    write_atomically,
)
from afterclick.io.home import HomeFile, TrainingStatus
from afterclick.io.redis_clients import create_redis, redis_reason
from afterclick.settings import Settings
from training.config import ENGINES

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = structlog.get_logger()
_LATEST, _LOCK = "LATEST", "training.lock"
_STAGING_MAX_AGE_S = 86_400
_IN_USE_S = 7 * 86_400
State = Literal["waiting", "training", "stopped"]


class MissingStep(BadInput):
    """An earlier step of the pipeline has not been run."""


class LastTraining(HomeFile):
    """The last training that ended with a decision of the gate; failed ones do not count."""

    version: str
    positions: dict[str, int]
    """topic/partition → highest offset that it read"""

    @classmethod
    def path(cls, home: Path) -> Path:
        return home / "last_training.json"


def approved_items(settings: Settings) -> frozenset[str]:
    """Items that administrators exempt from quarantine; none if Redis does not answer."""
    try:
        with closing(create_redis(settings.redis, socket_timeout=10, protocol=2)) as client:
            found: Any = client.smembers(settings.redis.keys.approved)
    except (RedisError, OSError) as error:
        log.warning("approved items unknown: Redis does not answer", error=redis_reason(error))
        return frozenset()
    return frozenset(item.decode() for item in found)


def models_in_use(settings: Settings) -> set[str] | None:
    """Versions that APIs have used within a week; None if Redis does not answer."""
    since, key = datetime.now(UTC).timestamp() - _IN_USE_S, settings.redis.keys.models_in_use
    try:
        with closing(create_redis(settings.redis, socket_timeout=10, protocol=2)) as client:
            found: Any = client.zrange(key, since, "+inf", byscore=True)
    except (RedisError, OSError) as error:
        log.warning("models in use unknown: Redis fails", reason=redis_reason(error))
        return None
    return {version.decode() for version in found}


class Anchor(HomeFile):
    """The last champion that was shown to be better than the anchor before it."""

    version: str

    @classmethod
    def path(cls, home: Path) -> Path:
        return home / "anchor.json"


@contextmanager
def new_version(root: Path, keep: int = 2) -> Iterator[tuple[str, Path]]:
    """Yield a new version's name and its folder, which becomes the latest version on success.

    Removes all older versions but `keep`. After an error nothing of the new version remains.
    """
    version = unused_name(root)
    with staged_folder(root / version) as folder:
        yield version, folder
    set_latest(root, version)
    _prune(root, version, keep)


def unused_name(root: Path) -> str:
    """A version named by the current time in UTC that does not exist in `root`."""
    base = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    version, n = base, 1
    while (root / version).exists():
        n += 1
        version = f"{base}-{n}"
    return version


def set_latest(root: Path, version: str) -> None:
    """Make a version the latest one, by one rename."""
    write_atomically(root / _LATEST, version)


def latest(root: Path, command: str) -> tuple[str, Path]:
    """The latest version in `root` and its folder.

    Raises MissingStep, naming the `command` that creates a version.
    """
    pointer = root / _LATEST
    if pointer.is_file():
        version = pointer.read_text().strip()
        if (root / version).is_dir():
            return version, root / version
    raise MissingStep(f"no version in {root}: run `afterclick {command}` first")


def _prune(root: Path, current: str, keep: int) -> None:
    """Remove old versions, and staging folders of killed runs after a day."""
    versions = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    for old in [p for p in versions if p.name != current][: -keep or None]:
        shutil.rmtree(old, ignore_errors=True)
    oldest = datetime.now(UTC).timestamp() - _STAGING_MAX_AGE_S
    for staging in root.glob(".*-*"):
        if staging.is_dir() and staging.stat().st_mtime < oldest:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def training_lock(home: Path, owner: str) -> Iterator[None]:
    """Hold the lock of a home folder, so that one training runs at a time.

    It ends with the process. Raises AlreadyRunning, naming the owner.
    """
    private_folder(home)
    with file_lock(home / _LOCK, f"{owner} (process {os.getpid()}, since {_now()})"):
        yield


def lock_holder(home: Path) -> str | None:
    """The owner of the training lock; None while no training runs."""
    return lock_owner(home / _LOCK)


def write_status(home: Path, state: State, progress: str = "", last: str | None = None) -> None:
    """Write retrain.json, with the current time as the begin of the state."""
    TrainingStatus(state=state, since=_now(), progress=progress, last=last).write(home)


@contextmanager
def report_progress(home: Path) -> Iterator[Callable[[str], None]]:
    """Write the progress of a training to retrain.json, and at the end its outcome.

    A waiting scheduler stays in the state `waiting`.
    """
    before, last = TrainingStatus.read(home), ""

    def report(progress: str) -> None:
        nonlocal last
        last = progress
        write_status(home, "training", progress)

    report("starting")
    try:
        yield report
    except BaseException as error:
        last = f"{type(error).__name__}: {error}"
        raise
    finally:
        waiting = before is not None and before.state == "waiting"
        write_status(home, "waiting" if waiting else "stopped", last=last)


@contextmanager
def spark_session(settings: Settings) -> Iterator[SparkSession]:
    """The active Spark session, or a new one that is stopped at the end of the `with`."""
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None:
        yield active
        return
    session = _new_session(settings)
    try:
        yield session
    finally:
        session.stop()


def _new_session(settings: Settings) -> SparkSession:
    """Small shuffles, UTC, no web UI, Python workers of this interpreter."""
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    # the JVM's second compiler pays for the passes of ALS, not for the ETL alone
    tiers = "" if ENGINES[settings.training.preset] == "spark" else " -XX:TieredStopAtLevel=1"
    config = {
        "spark.driver.memory": settings.training.memory,
        "spark.driver.extraJavaOptions": f"-XX:+UseSerialGC{tiers}",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "4",
        "spark.default.parallelism": "4",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "4",  # not one task per file
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.hadoop.fs.permissions.umask-mode": f"{PRIVATE:03o}",
        "spark.sql.warehouse.dir": str(settings.home.absolute() / "warehouse"),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.log.level": "ERROR",
    }
    builder = SparkSession.builder.appName("afterclick-training").master(settings.training.master)
    for key, value in config.items():
        builder = builder.config(key, value)
    session: SparkSession = builder.getOrCreate()
    return session


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

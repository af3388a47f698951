"""The jars that no Python package ships: Kafka itself, and Spark's Kafka connector.

Fetched once by the Ivy that PySpark ships, into a cache shared by every checkout on this machine.
"""

from __future__ import annotations

import fcntl
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from afterclick.errors import Unavailable
from afterclick.settings import KAFKA_JARS, SPARK_JARS
from infra.embedded.java import find_java


@dataclass(frozen=True)
class Bundle:
    """A Maven module with everything it needs, kept in a folder of the cache."""

    folder: str
    organisation: str
    module: str
    revision: str
    provided: tuple[str, ...] = ()
    """Organisations whose jars are left out because PySpark has them."""

    @property
    def ivy(self) -> str:
        """The module descriptor Ivy resolves."""
        excluded = "".join(f'<exclude org="{org}"/>' for org in self.provided)
        return (
            '<ivy-module version="2.0"><info organisation="afterclick" module="jars"/>'
            '<configurations><conf name="default"/></configurations><dependencies>'
            f'<dependency org="{self.organisation}" name="{self.module}" rev="{self.revision}" '
            f'conf="default->default">{excluded}</dependency></dependencies></ivy-module>'
        )


KAFKA = Bundle(KAFKA_JARS, "org.apache.kafka", "kafka_2.13", KAFKA_JARS.removeprefix("kafka-"))
SPARK_CONNECTOR = Bundle(
    SPARK_JARS,
    "org.apache.spark",
    "spark-sql-kafka-0-10_2.13",
    SPARK_JARS.removeprefix("spark-"),
    provided=(
        "org.apache.hadoop",
        "org.scala-lang",
        "org.slf4j",
        "org.xerial.snappy",
        "at.yawk.lz4",
    ),
)
BUNDLES = (KAFKA, SPARK_CONNECTOR)


def ensure_jars(cache: Path, bundle: Bundle) -> list[Path]:
    """The bundle's jars, fetched if the cache has none. Raises Unavailable where they cannot be had."""
    folder = cache / bundle.folder
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / ".lock"):
            if not folder.is_dir():
                _fetch(bundle, folder)
    return sorted(folder.glob("*.jar"))


def _fetch(bundle: Bundle, folder: Path) -> None:
    """Let Ivy resolve and copy into a temporary folder, which then takes its name in one step."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as name:
        work = Path(name)
        (work / "ivy.xml").write_text(bundle.ivy)
        command: list[str | Path] = [
            *(find_java().executable, "-jar", _ivy(), "-cache", work / "cache"),
            *("-ivy", work / "ivy.xml", "-confs", "default"),
            *("-retrieve", f"{work}/jars/[artifact]-[revision](-[classifier]).[ext]"),
        ]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode != 0 or not any((work / "jars").glob(f"{bundle.module}-*.jar")):
            log = folder.parent / f"{bundle.folder}.log"
            log.write_text(answer.stdout + answer.stderr)
            raise Unavailable(
                f"could not fetch {bundle.module} {bundle.revision} from Maven (is there internet? see {log})"
            )
        shutil.move(work / "jars", folder)


def _ivy() -> Path:
    """The Ivy jar inside PySpark, found without importing it."""
    spec = importlib.util.find_spec("pyspark")
    if spec is None or spec.origin is None:
        raise Unavailable("PySpark is not installed: run `make setup`")
    return next((Path(spec.origin).parent / "jars").glob("ivy-*.jar"))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

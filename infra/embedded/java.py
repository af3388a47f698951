"""Java 17 or newer, and the jars that no Python package ships: Kafka, Spark's Kafka connector.

The Ivy in PySpark downloads the jars once, into a cache that all checkouts on this machine share.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from afterclick.errors import Unavailable
from afterclick.io.files import file_lock
from afterclick.settings import KAFKA_JARS, SPARK_JARS

MINIMUM = 17
INSTALL_HINT = (
    "install a JDK (Debian: apt-get install openjdk-17-jre-headless; macOS: brew install "
    "openjdk@21), or set JAVA_HOME"
)


@dataclass(frozen=True)
class Java:
    """One Java runtime."""

    executable: Path
    version: int

    @property
    def home(self) -> Path:
        """The JAVA_HOME of this Java."""
        return self.executable.resolve().parent.parent


def find_java() -> Java:
    """The Java of JAVA_HOME, of PATH, or from cjdk. Raises Unavailable."""
    tried = [java for path in _candidates() if (java := _probe(path))]
    for java in tried:
        if java.version >= MINIMUM:
            return java
    fetched = _from_cjdk()
    if fetched:
        return fetched
    found = f"only Java {tried[0].version} ({tried[0].executable})" if tried else "no Java"
    raise Unavailable(f"found {found}, but Java {MINIMUM} or newer is required: {INSTALL_HINT}")


def _candidates() -> list[Path]:
    paths = []
    if home := os.environ.get("JAVA_HOME"):
        paths.append(Path(home) / "bin" / "java")
    if on_path := shutil.which("java"):
        paths.append(Path(on_path))
    return paths


def _probe(path: Path) -> Java | None:
    if not path.exists():
        return None
    try:
        answer = subprocess.run(
            [path, "-version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r'version "(\d+)', answer.stderr + answer.stdout)
    return Java(path, int(version[1])) if version else None


def _from_cjdk() -> Java | None:
    """A JDK from cjdk's cache or, with internet, from its vendor."""
    try:
        import cjdk  # type: ignore[import-not-found,unused-ignore]  # optional, has no types
    except ImportError:
        return None
    try:
        home = Path(cjdk.java_home(version=str(MINIMUM), vendor="temurin"))
    except Exception:  # cjdk raises the errors of its HTTP clients and archive formats
        return None
    return _probe(home / "bin" / "java")


@dataclass(frozen=True)
class Bundle:
    """A Maven module with its dependencies, in a folder of the cache."""

    folder: str
    organisation: str
    module: str
    revision: str
    provided: tuple[str, ...] = ()
    """Organisations whose jars PySpark already has."""

    @property
    def ivy(self) -> str:
        """The module descriptor that Ivy resolves."""
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
    """The bundle's jars, fetched into an empty cache. Raises Unavailable."""
    folder = cache / bundle.folder
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with file_lock(cache / ".lock", timeout_s=-1):
            if not folder.is_dir():
                _fetch(bundle, folder)
    return sorted(folder.glob("*.jar"))


def _fetch(bundle: Bundle, folder: Path) -> None:
    """Resolve into a temporary folder, then rename it."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as name:
        work = Path(name)
        (work / "ivy.xml").write_text(bundle.ivy)
        command: list[str | Path] = [
            find_java().executable,
            "-jar",
            _ivy(),
            "-cache",
            work / "cache",
            "-ivy",
            work / "ivy.xml",
            "-confs",
            "default",
            "-retrieve",
            f"{work}/jars/[artifact]-[revision](-[classifier]).[ext]",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not any((work / "jars").glob(f"{bundle.module}-*.jar")):
            log = folder.parent / f"{bundle.folder}.log"
            log.write_text(done.stdout + done.stderr)
            raise Unavailable(
                f"could not fetch {bundle.module} {bundle.revision} from Maven: check the internet "
                f"connection, see {log}"
            )
        shutil.move(work / "jars", folder)


def _ivy() -> Path:
    """The Ivy jar inside PySpark, found without importing it."""
    spec = importlib.util.find_spec("pyspark")
    if spec is None or spec.origin is None:
        raise Unavailable("PySpark is not installed: run `make setup`")
    return next((Path(spec.origin).parent / "jars").glob("ivy-*.jar"))

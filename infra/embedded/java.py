"""Find a Java that runs both Kafka 4 and Spark 4: version 17 or newer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from afterclick.errors import Unavailable

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
    except Exception:  # cjdk raises the errors of whichever HTTP client and archive format it used
        return None
    return _probe(home / "bin" / "java")

"""One format of all log lines of a process."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import logging
import structlog
from afterclick.io.logging import configure_logging

configure_logging()
structlog.contextvars.bind_contextvars(request_id="r1")
structlog.get_logger().info("stream running", query="live")
logging.getLogger("library").warning("of %s", "a library")
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger().exception("failed")
structlog.get_logger().warning("no answer", error="redis://:hidden@host", seen="yes")
logging.getLogger("library").error("postgresql://user:hidden@host")
try:
    raise ValueError("redis://:hidden@host")
except ValueError:
    structlog.get_logger().exception("failed")
print("result")
"""


def test_outside_a_terminal_every_line_is_json_on_standard_error() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "result\n"
    own, library, failure, *secret = map(json.loads, done.stderr.splitlines())
    assert (
        own.items()
        >= {
            "event": "stream running",
            "level": "info",
            "request_id": "r1",
            "query": "live",
        }.items()
    )
    assert own["timestamp"]
    assert library.items() >= {"event": "of a library", "level": "warning"}.items()
    assert library["request_id"] == "r1"
    assert "ZeroDivisionError" in failure["exception"]
    assert len(secret) == 3
    assert "hidden" not in done.stderr
    assert secret[0]["error"] == "redis://:***@host"
    assert "ValueError: redis://:***@host" in secret[2]["exception"]

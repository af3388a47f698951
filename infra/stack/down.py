"""Stop a stack from another shell."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from afterclick.errors import Unavailable
from infra.stack.lock import holder


def down(home: Path, timeout_s: float) -> int | None:
    """Ask the stack of this home to end and wait until it has. Returns its pid, None when there was none.

    Raises Unavailable when it is still there after `timeout_s`.
    """
    pid = holder(home)
    if pid is None:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while holder(home) == pid:
        if time.monotonic() > deadline:
            raise Unavailable(
                f"the stack {pid} has not ended within {timeout_s:.0f} s: kill -9 {pid} ends all of it"
            )
        time.sleep(0.1)
    return pid

"""Ports on this machine: which are free, and who answers."""

from __future__ import annotations

import itertools
import random
import socket

from afterclick.errors import Unavailable

LOOPBACK = "127.0.0.1"
# below those that systems give to outgoing connections (Linux: from 32768), of which any could take the port
# between the choice and the start of the server
_CHOICE = range(10_000, 30_000)
_candidates = itertools.islice(
    itertools.cycle(_CHOICE), random.SystemRandom().randrange(len(_CHOICE)), None
)


def free_port(together: int = 1) -> int:
    """A port for a server, free a moment ago, and with it the `together - 1` that follow. Raises Unavailable.

    One process is not given the same twice (of 20,000), and each begins at a place of its own.
    """
    for _ in _CHOICE:
        ports = list(itertools.islice(_candidates, together))
        if ports[-1] - ports[0] == together - 1 and all(map(is_free, ports)):
            return ports[0]
    raise Unavailable(
        f"none of the ports {_CHOICE.start} to {_CHOICE.stop - 1} is free: stop what has them"
    )


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def answers(port: int, host: str = LOOPBACK, timeout_s: float = 0.5) -> bool:
    """Whether something accepts connections on the port."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False

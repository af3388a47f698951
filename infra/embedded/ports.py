"""TCP ports on this machine."""

from __future__ import annotations

import itertools
import random
import socket

from afterclick.errors import Unavailable

LOOPBACK = "127.0.0.1"
# below those that systems give to outgoing connections (Linux: from 32768), of which any could take
# the port
# between the choice and the start of the server
_CHOICE = range(10_000, 30_000)
_candidates = itertools.islice(
    itertools.cycle(_CHOICE), random.SystemRandom().randrange(len(_CHOICE)), None
)


def free_port(together: int = 1) -> int:
    """A free port, followed by `together - 1` free ports. Raises Unavailable.

    A process gets each port once (of 20,000), from a random start.
    """
    for _ in _CHOICE:
        ports = list(itertools.islice(_candidates, together))
        if ports[-1] - ports[0] == together - 1 and all(map(is_free, ports)):
            return ports[0]
    raise Unavailable(
        f"no free port in {_CHOICE.start}…{_CHOICE.stop - 1}: stop a process that uses one"
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

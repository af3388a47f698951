"""TCP ports on this machine."""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Sequence

from afterclick.errors import Unavailable

LOOPBACK = "127.0.0.1"
# below the ports of outgoing connections (Linux: from 32768), one of which could take the port
# between the choice and the start of the server
_CHOICE = range(10_000, 30_000)


class PortChooser:
    """Chooses free ports of a range in turn, from a random start: each once before any repeats."""

    def __init__(self, ports: Sequence[int], start: int | None = None) -> None:
        self._ports = ports
        first = random.SystemRandom().randrange(len(ports)) if start is None else start
        self._candidates = itertools.islice(itertools.cycle(ports), first, None)

    def free_port(self, together: int = 1) -> int:
        """A free port, followed by `together - 1` free ports. Raises Unavailable."""
        for _ in self._ports:
            ports = list(itertools.islice(self._candidates, together))
            if ports[-1] - ports[0] == together - 1 and all(map(is_free, ports)):
                return ports[0]
        first, last = self._ports[0], self._ports[-1]
        raise Unavailable(f"no free port in {first}…{last}: stop a process that uses one")


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


free_port = PortChooser(_CHOICE).free_port

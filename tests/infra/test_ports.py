"""Ports for servers, outside the range of outgoing connections."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from afterclick.errors import Unavailable
from infra.embedded.server import LOOPBACK, PortChooser, free_port, is_free


def test_server_ports_are_outside_the_range_of_outgoing_connections() -> None:
    """The control: a port chosen by the system is in the range of outgoing connections."""
    range_file = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not range_file.exists():
        pytest.fail("this test reads the range of outgoing connections from Linux")
    low, high = map(int, range_file.read_text().split())
    with socket.socket() as system:
        system.bind((LOOPBACK, 0))
        assert low <= system.getsockname()[1] <= high
    assert not any(low <= free_port(together=2) + n <= high for n in range(2) for _ in range(50))


def test_no_port_is_chosen_twice() -> None:
    chosen = [port + n for _ in range(200) for port in [free_port(together=2)] for n in range(2)]
    assert len(set(chosen)) == len(chosen)


def test_ports_in_use_are_skipped() -> None:
    first = free_port(together=3)
    with socket.socket() as squatter:
        squatter.bind((LOOPBACK, first + 1))
        squatter.listen()
        assert not is_free(first + 1)
        chooser = PortChooser(range(first, first + 3), start=0)
        assert [chooser.free_port(), chooser.free_port()] == [first, first + 2]
        with pytest.raises(Unavailable, match="no free port"):
            PortChooser(range(first, first + 2), start=0).free_port(together=2)

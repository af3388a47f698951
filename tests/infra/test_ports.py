"""Ports for servers: not those that the system gives away meanwhile."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from afterclick.errors import Unavailable
from infra.embedded import ports
from infra.embedded.ports import LOOPBACK, free_port, is_free


def test_no_outgoing_connection_is_given_a_port_that_was_chosen_for_a_server() -> None:
    """The control: a port that the system chooses itself is one that it also gives to
    connections.
    """
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not given.exists():
        pytest.fail("this test reads the range of outgoing connections from Linux")
    low, high = map(int, given.read_text().split())
    with socket.socket() as system:
        system.bind((LOOPBACK, 0))
        assert low <= system.getsockname()[1] <= high
    assert not any(low <= free_port(together=2) + n <= high for n in range(2) for _ in range(50))


def test_no_port_is_chosen_twice() -> None:
    chosen = [port + n for _ in range(200) for port in [free_port(together=2)] for n in range(2)]
    assert len(set(chosen)) == len(chosen)


def test_ports_that_are_taken_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    first = free_port(together=3)
    with socket.socket() as squatter:
        squatter.bind((LOOPBACK, first + 1))
        squatter.listen()
        assert not is_free(first + 1)
        monkeypatch.setattr(ports, "_CHOICE", range(first, first + 3))
        monkeypatch.setattr(
            ports, "_candidates", iter([*range(first, first + 3), *range(first, first + 3)])
        )
        assert [free_port(), free_port()] == [first, first + 2]
        monkeypatch.setattr(ports, "_candidates", iter([first, first + 1] * 3))
        with pytest.raises(Unavailable, match="no free port"):
            free_port(together=2)

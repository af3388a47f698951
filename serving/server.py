"""Run the application with uvicorn: one worker, uvloop, httptools, an orderly end on SIGTERM."""

from __future__ import annotations

import gc
import socket
import sys

import uvicorn

from afterclick.errors import Unavailable
from afterclick.settings import Settings
from serving.app import create_app
from serving.control.api_keys import read_keys
from serving.control.auth import check_address
from serving.control.store import Database

KEEP_ALIVE_S = 75
"""How long an idle connection is kept: longer than proxies keep theirs (a minute at most), so that none
sends a request on one that is just being closed."""
DRAIN_S = 3
"""How long open requests and WebSockets may take to end; feedback is flushed after that."""
MAX_MESSAGE = 65_536
SEND_BUFFER = 131_072
"""Bytes that the system holds for a client that does not read: some lists; by itself it would hold megabytes,
and lists would be made that nobody reads."""


def run(settings: Settings) -> None:
    """Serve until told to stop. Raises Unavailable where the address is taken or, where it is reachable by
    others, the database does not say whether there are keys; BadInput where nobody needs one."""
    check_address(settings.serving, lambda: _has_keys(settings))
    listener = bind(settings.serving.host, settings.serving.port)
    prefer_requests()
    uvicorn.Server(config_of(settings)).run(sockets=[listener])


def _has_keys(settings: Settings) -> bool:
    """Whether SQL holds API keys. Raises Unavailable."""
    database = Database(settings.database)
    database.upgrade()
    with database.begin() as connection:
        kept = read_keys(connection)
    database.close()
    return bool(kept)


def prefer_requests() -> None:
    """Let neither background threads nor the collector hold a request up for long.

    A thread that parses Kafka records gives the interpreter back after half a millisecond instead of five,
    and the collector looks for cycles a fiftieth as often: requests leave next to none.
    """
    sys.setswitchinterval(0.0005)
    gc.set_threshold(35_000, 20, 50)


def config_of(settings: Settings) -> uvicorn.Config:
    """How uvicorn runs the application."""
    return uvicorn.Config(
        create_app(settings),
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE,
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        backlog=1024,
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything is built, so that a taken port is one clear line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # connections inherit it
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror}; set --port") from None
    return listener

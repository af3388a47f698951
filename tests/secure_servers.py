"""Servers that demand TLS and passwords: a Valkey with the ACL of the images, behind TLS.

The Valkey of the wheel is built without TLS: a proxy ends TLS in front of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import redis

from afterclick.settings import RedisSettings
from infra.embedded.certificates import Certificates, create_certificates
from infra.embedded.server import LOOPBACK, ValkeyServer, free_port
from tests.waiting import REDIS_S, wait_until

ACL = Path(__file__).parents[1] / "infra" / "docker" / "valkey-users.acl"
PASSWORD = "p@ss:w/ord %é"
"""With every character that a URL would misread."""
ENCODED = "p%40ss%3Aw%2Ford%20%25%C3%A9"
ADMIN = "admin-password"


class AclValkeyServer(ValkeyServer):
    """A Valkey that has the users of `infra/docker/valkey-users.acl`, and an administrator."""

    @property
    def client_settings(self) -> RedisSettings:
        url = f"redis://afterclick:{ENCODED}@{LOOPBACK}:{self.port}/0"
        return RedisSettings(url=url, timeout_s=REDIS_S)

    def prepare(self) -> None:
        super().prepare()
        digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
        users = ACL.read_text().replace("PASSWORD_SHA256", digest)
        self._users.write_text(f"{users}user admin on >{ADMIN} ~* &* +@all\n")

    def command(self) -> Sequence[str | Path]:
        return [*super().command(), "--aclfile", self._users]

    def rejected(self) -> list[str]:
        """What the ACL has denied so far: the command or the key of each denial."""
        url = f"redis://admin:{ADMIN}@{LOOPBACK}:{self.port}/0"
        with redis.Redis.from_url(url, decode_responses=True) as client:
            return [f"{entry['reason']} {entry['object']}" for entry in client.acl_log()]

    @property
    def _users(self) -> Path:
        return self.folder / "users.acl"


@contextmanager
def tls_proxy(server_port: int, certificates: Certificates) -> Iterator[int]:
    """A port that speaks TLS and passes everything on to a server without TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.cert_file, certificates.key_file)
    loop, port, started = asyncio.new_event_loop(), free_port(), threading.Event()

    async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            upstream, downstream = await asyncio.open_connection(LOOPBACK, server_port)
            await asyncio.gather(_copy(reader, downstream), _copy(upstream, writer))

    async def serve() -> None:
        await asyncio.start_server(passed_on, LOOPBACK, port, ssl=context)
        started.set()

    def run() -> None:
        loop.create_task(serve())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_until(started.is_set)
    yield port
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while block := await reader.read(1 << 16):
            writer.write(block)
            await writer.drain()
    writer.close()


@contextmanager
def secure_redis(folder: Path) -> Iterator[tuple[AclValkeyServer, RedisSettings]]:
    """A Valkey with users behind TLS, and the settings to reach it."""
    server, certificates = AclValkeyServer(folder), create_certificates(folder / "certificates")
    server.start()
    try:
        with tls_proxy(server.port, certificates) as port:
            url = f"rediss://afterclick:{ENCODED}@{LOOPBACK}:{port}/0"
            yield (
                server,
                RedisSettings(url=url, ca_file=certificates.ca_file, timeout_s=REDIS_S),
            )
    finally:
        server.kill()

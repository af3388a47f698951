"""A Kafka broker (KRaft, one node) from its Maven jars, tuned for a laptop; topic administration.

writes  topic  every topic of afterclick.topics, with its partitions and retention
"""

from __future__ import annotations

import os
import secrets
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import structlog
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import KafkaError
from pydantic import SecretStr

from afterclick.errors import Unavailable
from afterclick.io.kafka_clients import (
    jaas_config,
    java_properties,
    python_admin,
    python_unavailable,
)
from afterclick.settings import KafkaSettings, Settings
from afterclick.topics import Topics
from infra.embedded.certificates import create_certificates
from infra.embedded.java import find_java
from infra.embedded.server import LOOPBACK, EmbeddedServer, free_port

log = structlog.get_logger()
_JVM = (
    "-Xms128m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-Xshare:auto",
    "-Djava.awt.headless=true",
    "-Djava.net.preferIPv4Stack=true",
)
_CONFIG = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners={protocol}://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners={protocol}://{host}:{advertised_port}
inter.broker.listener.name={protocol}
controller.listener.names=CONTROLLER
listener.security.protocol.map={protocol}:{protocol},CONTROLLER:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
# one node: no replicas
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
controlled.shutdown.enable=false
# a restarted broker waits for the end of its previous session (default: 9 s)
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# few threads and little memory
num.network.threads=2
num.io.threads=2
num.recovery.threads.per.data.dir=2
background.threads=2
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=16777216
log.index.size.max.bytes=1048576
log.segment.bytes=134217728
log.segment.delete.delay.ms=1000
log.retention.check.interval.ms=300000
"""
_SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")
_MECHANISMS = ("PLAIN", *_SCRAM)
_LOG4J = """\
Configuration:
  Appenders:
    Console:
      name: out
      target: SYSTEM_OUT
      PatternLayout:
        pattern: "%d %p %m (%c{1})%n"
  Loggers:
    Root:
      level: WARN
      AppenderRef:
        ref: out
"""


class KafkaServer(EmbeddedServer):
    """One broker, which is also its controller."""

    name = "Kafka"

    def __init__(
        self,
        folder: Path,
        jars: Sequence[Path],
        port: int | None = None,
        controller_port: int | None = None,
        advertised_port: int | None = None,
    ) -> None:
        """`advertised_port`: the port for clients, where a proxy is in front of the broker."""
        super().__init__(folder, port)
        self.jars = jars
        self.controller_port = controller_port or free_port()
        self.advertised_port = advertised_port or self.port

    @property
    def address(self) -> str:
        """The bootstrap address: host:port."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def client_settings(self) -> KafkaSettings:
        """The settings by which clients reach the broker."""
        return KafkaSettings(bootstrap=self.address)

    def prepare(self) -> None:
        """Write the configuration and format a new data folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = self.folder / "data"
        config = _CONFIG.format(
            protocol=self.client_settings.security_protocol,
            host=LOOPBACK,
            port=self.port,
            advertised_port=self.advertised_port,
            controller_port=self.controller_port,
            data=data,
        )
        config += "".join(f"{name}={value}\n" for name, value in self._security().items())
        (self.folder / "server.properties").write_text(config)
        (self.folder / "log4j2.yaml").write_text(_LOG4J)
        if not (data / "meta.properties").exists():
            self._format()

    def ready(self) -> bool:
        return broker_answers(self.client_settings)

    def command(self) -> Sequence[str | Path]:
        return [*self._java(), "kafka.Kafka", self.folder / "server.properties"]

    def _security(self) -> dict[str, str]:
        """Further properties of the broker: encryption and passwords."""
        return {}

    def _java(self) -> list[str | Path]:
        classpath = os.pathsep.join(str(jar) for jar in self.jars)
        log4j = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.yaml'}"
        return [find_java().executable, *_JVM, log4j, "-cp", classpath]

    def _users(self) -> list[str]:
        """Options of the storage tool that create users."""
        return []

    def _format(self) -> None:
        cluster_id = urlsafe_b64encode(uuid4().bytes).decode().rstrip("=").replace("-", "a")
        tool = ["kafka.tools.StorageTool", "format", "-t", cluster_id]
        command = [*self._java(), *tool, "-c", self.folder / "server.properties", *self._users()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unavailable(
                f"Kafka could not format {self.folder}: {(done.stdout + done.stderr).strip()}"
            )


class SecureKafkaServer(KafkaServer):
    """A broker that accepts TLS with a user name and a password only, by any SASL mechanism.

    Its first start creates the certificates, in its folder; `client_settings` has the user.
    """

    username: Final = "afterclick"

    def __init__(self, folder: Path, jars: Sequence[Path], port: int | None = None) -> None:
        super().__init__(folder, jars, port)
        self.password = SecretStr(secrets.token_urlsafe(18))
        self._certificates = create_certificates(self.folder / "certificates")

    @property
    def client_settings(self) -> KafkaSettings:
        return KafkaSettings(
            bootstrap=self.address,
            security_protocol="SASL_SSL",
            username=self.username,
            password=self.password,
            ca_file=self._certificates.ca_file,
        )

    def _security(self) -> dict[str, str]:
        java = java_properties(self.client_settings)
        login = {"username": self.username, "password": self.password.get_secret_value()}
        users = {f"user_{self.username}": login["password"]}
        files = self._certificates
        keystore = self.folder / "server-keystore.pem"
        keystore.touch(mode=0o600)
        keystore.write_bytes(files.key_file.read_bytes() + files.cert_file.read_bytes())
        listener = "listener.name.sasl_ssl"
        return {
            "sasl.enabled.mechanisms": ",".join(_MECHANISMS),
            "sasl.mechanism.inter.broker.protocol": java["sasl.mechanism"],
            f"{listener}.plain.sasl.jaas.config": jaas_config("PLAIN", **login, **users),
            **{
                f"{listener}.{mechanism.lower()}.sasl.jaas.config": jaas_config(mechanism, **login)
                for mechanism in _SCRAM
            },
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(keystore),
            "ssl.truststore.type": java["ssl.truststore.type"],
            "ssl.truststore.location": java["ssl.truststore.location"],
        }

    def _users(self) -> list[str]:
        user = f"[name={self.username},password={self.password.get_secret_value()}]"
        return [word for name in _SCRAM for word in ("--add-scram", f"{name}={user}")]


def ensure_topics(settings: Settings) -> list[str]:
    """Create missing topics; their names, sorted. Existing topics are unchanged; a number of
    partitions that differs from the setting is logged.

    Returns when every new partition has a leader, which is later than in the metadata.
    """
    kafka = settings.kafka
    with _admin(kafka) as admin:
        existing = set(admin.list_topics())
        missing = {
            topic.name: {
                "num_partitions": topic.partitions,
                "replication_factor": kafka.replication,
                "configs": topic.config,
            }
            for topic in kafka.topics.all()
            if topic.name not in existing
        }
        if missing:
            admin.create_topics(missing, wait_for_metadata=True)
            partitions = [
                TopicPartition(topic.name, n)
                for topic in kafka.topics.all()
                if topic.name in missing
                for n in range(topic.partitions)
            ]
            admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
        for name, difference in _other_partitions(admin, kafka.topics, existing).items():
            log.warning("a topic has another number of partitions", topic=name, **difference)
    return sorted(missing)


def _other_partitions(
    admin: KafkaAdminClient, topics: Topics, existing: set[str]
) -> dict[str, dict[str, Any]]:
    """The topics whose number of partitions differs from the setting, with what to do."""
    wanted = {topic.name: topic.partitions for topic in topics.all() if topic.name in existing}
    found: dict[str, dict[str, Any]] = {}
    for topic in admin.describe_topics(sorted(wanted)) if wanted else ():
        name, count = topic["name"], len(topic["partitions"])
        if count != wanted[name]:
            added = "all processes read the topic's; set AFTERCLICK_KAFKA__PARTITIONS to it"
            fewer = "add partitions with kafka-topics --alter, or change the setting"
            advice = added if count > wanted[name] else fewer
            found[name] = {"partitions": count, "setting": wanted[name], "advice": advice}
    return found


def delete_topics(kafka: KafkaSettings) -> None:
    """Delete every topic with the prefix of these settings."""
    names = {topic.name for topic in kafka.topics.all()}
    with _admin(kafka) as admin:
        present = sorted(names & set(admin.list_topics()))
        if present:
            admin.delete_topics(present)


def broker_answers(kafka: KafkaSettings) -> bool:
    """Whether a broker answers requests."""
    try:
        with _admin(kafka, timeout_ms=1500) as admin:
            admin.list_topics()
    except Unavailable:
        return False
    return True


@contextmanager
def _admin(kafka: KafkaSettings, timeout_ms: int = 10_000) -> Iterator[KafkaAdminClient]:
    """An admin client during a `with`. Kafka errors become Unavailable."""
    try:
        with python_admin(kafka, bootstrap_timeout_ms=timeout_ms) as admin:
            yield admin
    except (KafkaError, OSError) as error:
        raise python_unavailable(kafka, error) from error

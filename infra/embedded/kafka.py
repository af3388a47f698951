"""A Kafka broker (KRaft, one node) from its Maven jars, tuned for a laptop; topic administration.

writes  topic  every topic of afterclick.topics, with its partitions and retention
"""

from __future__ import annotations

import os
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import KafkaError

from afterclick.errors import Unavailable
from afterclick.settings import KafkaSettings, Settings
from infra.embedded.java import find_java
from infra.embedded.server import LOOPBACK, EmbeddedServer, free_port

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
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{advertised_port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
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

    def prepare(self) -> None:
        """Write the configuration and format a new data folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = self.folder / "data"
        config = _CONFIG.format(
            host=LOOPBACK,
            port=self.port,
            advertised_port=self.advertised_port,
            controller_port=self.controller_port,
            data=data,
        )
        (self.folder / "server.properties").write_text(config)
        (self.folder / "log4j2.yaml").write_text(_LOG4J)
        if not (data / "meta.properties").exists():
            self._format()

    def ready(self) -> bool:
        return broker_answers(self.address)

    def command(self) -> Sequence[str | Path]:
        return [*self._java(), "kafka.Kafka", self.folder / "server.properties"]

    def _java(self) -> list[str | Path]:
        classpath = os.pathsep.join(str(jar) for jar in self.jars)
        log4j = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.yaml'}"
        return [find_java().executable, *_JVM, log4j, "-cp", classpath]

    def _format(self) -> None:
        cluster_id = urlsafe_b64encode(uuid4().bytes).decode().rstrip("=").replace("-", "a")
        tool = ["kafka.tools.StorageTool", "format", "-t", cluster_id]
        command = [*self._java(), *tool, "-c", self.folder / "server.properties"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unavailable(
                f"Kafka could not format {self.folder}: {(done.stdout + done.stderr).strip()}"
            )


def ensure_topics(settings: Settings) -> list[str]:
    """Create missing topics; their names, sorted. Existing topics are unchanged.

    Returns when every new partition has a leader, which is later than in the metadata.
    """
    kafka = settings.kafka
    with _admin(kafka.bootstrap) as admin:
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
    return sorted(missing)


def delete_topics(kafka: KafkaSettings) -> None:
    """Delete every topic with the prefix of these settings."""
    names = {topic.name for topic in kafka.topics.all()}
    with _admin(kafka.bootstrap) as admin:
        present = sorted(names & set(admin.list_topics()))
        if present:
            admin.delete_topics(present)


def broker_answers(bootstrap: str) -> bool:
    """Whether a broker answers requests."""
    try:
        with _admin(bootstrap, timeout_ms=1500) as admin:
            admin.list_topics()
    except Unavailable:
        return False
    return True


@contextmanager
def _admin(bootstrap: str, timeout_ms: int = 10_000) -> Iterator[KafkaAdminClient]:
    """An admin client during a `with`. Kafka errors become Unavailable."""
    servers = bootstrap.split(",")
    try:
        with KafkaAdminClient(bootstrap_servers=servers, bootstrap_timeout_ms=timeout_ms) as admin:
            yield admin
    except (KafkaError, OSError) as error:
        raise Unavailable(f"Kafka at {bootstrap}: {error or type(error).__name__}") from error

"""The parts of the stack, in the order they are started."""

from __future__ import annotations

from infra.embedded.jars import KAFKA, ensure_jars
from infra.embedded.kafka import KafkaServer
from infra.embedded.process import Process, afterclick_command
from infra.embedded.valkey import ValkeyServer
from infra.stack.layout import Layout
from infra.stack.part import Part, http_ok


def servers(layout: Layout) -> list[Part]:
    """Kafka and Valkey, as far as the settings do not name others elsewhere."""
    parts = []
    if layout.kafka_port:
        jars = ensure_jars(layout.settings.jars, KAFKA)
        folder = layout.home / "kafka"
        kafka = KafkaServer(folder, jars, layout.kafka_port, layout.kafka_port + 1)
        parts.append(
            Part(
                *("kafka", kafka.process, kafka.ready),
                prepare=kafka.prepare,
                port=layout.kafka_port,
                url=kafka.address,
                essential=True,
            )
        )
    if layout.redis_port:
        valkey = ValkeyServer(layout.home / "valkey", layout.redis_port)
        parts.append(
            Part(
                *("valkey", valkey.process, valkey.ready),
                prepare=valkey.prepare,
                port=layout.redis_port,
                url=valkey.address,
                essential=True,
            )
        )
    return parts


def applications(layout: Layout, retrain: bool = False) -> list[Part]:
    """The API, the stream job and the page; where it is asked for, trainings by the clock."""
    names = ("serve", "ui", "stream", "console")
    api, page, stream, console = (command(layout, name, name) for name in names)
    console_url = layout.settings.console.url
    found = [
        Part(
            *("serve", api, lambda: http_ok(f"{layout.api_url}/health/live")),
            url=layout.api_url,
            port=layout.settings.serving.port,
        ),
        Part(
            "console",
            console,
            lambda: http_ok(f"{console_url}/health/live"),
            url=console_url,
            port=layout.settings.console.port,
        ),
        Part("stream", stream, lambda: stream.log_contains("stream running"), ready_within_s=120),
        Part(
            *("ui", page, lambda: http_ok(layout.ui_url)),
            url=layout.ui_url,
            port=layout.settings.ui.port,
        ),
    ]
    if retrain:
        trainer = command(layout, "retrain", "retrain")
        found.append(
            Part("retrain", trainer, lambda: trainer.log_contains("training by the clock"))
        )
    return found


def command(layout: Layout, name: str, *arguments: str) -> Process:
    """An `afterclick` command as a child of this stack."""
    return afterclick_command(layout.settings, name, *arguments)

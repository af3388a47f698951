"""Publish a model: the event on the topic `models` makes it the champion.

reads   topic     models: the last event names the champion
writes  s3        <bucket>/<prefix>/<version>/*, the manifest last (if `store` is set)
        topic     models  ModelPublished, key: the version: compaction keeps each hash

Credentials, region and endpoint of S3 come from the usual AWS variables (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, …).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from confluent_kafka import KafkaError, Message

from afterclick.artifact import MANIFEST, read_manifest, sha256, verify
from afterclick.errors import BadEvent, BadInput, Unavailable
from afterclick.events import ModelEvent, ModelPublished, decode, encode, new_id, now
from afterclick.io.kafka_clients import ConnectionErrors, create_producer
from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import KafkaSettings


def announce(
    kafka: KafkaSettings, folder: Path, timeout_s: float = 30.0, store: str | None = None
) -> ModelPublished:
    """Publish the artifact in `folder`; Kafka has acknowledged the event on return.

    Every file is verified first. With a `store` (s3://bucket/prefix) the artifact is uploaded and
    served from there. Raises BadArtifact, or Unavailable if S3 or Kafka fails; the champion then
    stays the same.
    """
    manifest = read_manifest(folder)
    verify(folder, manifest)
    published = ModelPublished(
        version=manifest.version,
        uri=folder.absolute().as_uri() if store is None else upload(folder, store),
        manifest_sha256=sha256(folder / MANIFEST),
        metrics=manifest.metrics,
    )
    event = ModelEvent(
        id=new_id(), source="/training", time=now(), subject=manifest.version, data=published
    )
    _deliver(kafka, manifest.version, encode(event), timeout_s)
    return published


def champion(kafka: KafkaSettings, timeout_s: float = 10.0) -> ModelPublished | None:
    """The model that was published last; None if there is none. Raises Unavailable."""
    model: ModelPublished | None = None
    with KafkaLog(kafka, timeout_s) as log:
        for message in log.read(log.ranges(kafka.topics.models)):
            try:
                event = decode(message.value())
            except BadEvent:
                continue
            if isinstance(event, ModelEvent):
                model = event.data
    return model


def upload(folder: Path, root: str) -> str:
    """Copy an artifact below `root` (s3://bucket/prefix); returns its URI. Idempotent.

    Raises BadArtifact for a damaged artifact, BadInput for another kind of address, Unavailable if
    S3 fails; without its manifest, which is written last, an upload is not read.
    """
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    parts = urlsplit(root)
    if parts.scheme != "s3" or not parts.netloc:
        raise BadInput(f"artifacts cannot be published to {root!r}: expected s3://bucket/prefix")
    manifest = read_manifest(folder)
    verify(folder, manifest)
    prefix = "/".join(filter(None, [parts.path.strip("/"), manifest.version]))
    client: Any = boto3.client("s3")
    try:
        for name in (*sorted(manifest.files), MANIFEST):
            client.upload_file(str(folder / name), parts.netloc, f"{prefix}/{name}")
    except (Boto3Error, BotoCoreError, ClientError, OSError) as error:
        raise Unavailable(
            f"cannot upload {manifest.version} to {root}: {error}; the champion stays"
        ) from None
    return f"s3://{parts.netloc}/{prefix}"


def _deliver(kafka: KafkaSettings, version: str, value: bytes, timeout_s: float) -> None:
    failed: list[KafkaError] = []
    delivered: list[Message] = []

    def report(error: KafkaError | None, message: Message) -> None:
        if error is None:
            delivered.append(message)
        else:
            failed.append(error)

    options = {
        "enable.idempotence": True,
        "acks": "all",
        "delivery.timeout.ms": int(timeout_s * 1000),
    }
    errors = ConnectionErrors(kafka)
    producer = create_producer(kafka, options, errors)
    producer.produce(kafka.topics.models, value, version, on_delivery=report)
    producer.flush(timeout_s + 5)
    if failed or not delivered:
        reason = errors.reason(failed[0]) if failed else "no acknowledgement"
        raise Unavailable(
            f"Kafka at {kafka.bootstrap} did not take the model: {reason}; the champion stays"
        )

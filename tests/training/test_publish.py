"""Publishing is atomic: a model is published whole, verified and acknowledged, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from afterclick import artifact
from afterclick.errors import BadArtifact, Unavailable
from afterclick.settings import KafkaSettings, Settings
from training import publish


def made(root: Path, version: str) -> Path:
    def fill(folder: Path) -> None:
        np.save(folder / "als_item_factors.npy", np.eye(3, dtype=np.float32))

    return artifact.write(
        root, version, fill, created="2026-01-01", items=3, metrics={"live.ndcg@10": 0.5}
    )[0]


def test_the_last_announcement_is_the_champion(settings: Settings) -> None:
    assert publish.champion(settings.kafka) is None
    for version in ("v1", "v2"):
        publish.announce(settings.kafka, made(settings.artifacts, version))
    champion = publish.champion(settings.kafka)
    assert champion is not None
    assert (champion.version, champion.metrics) == ("v2", {"live.ndcg@10": 0.5})
    folder = settings.artifacts / "v2"
    assert artifact.read_manifest(folder, champion.manifest_sha256).version == "v2"


def test_a_damaged_artifact_is_not_announced(settings: Settings) -> None:
    publish.announce(settings.kafka, made(settings.artifacts, "v1"))
    folder = made(settings.artifacts, "v2")
    path = folder / "als_item_factors.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BadArtifact, match="damaged"):
        publish.announce(settings.kafka, folder)
    champion = publish.champion(settings.kafka)
    assert champion is not None
    assert champion.version == "v1"


def test_without_kafka_nothing_is_announced(tmp_path: Path) -> None:
    nowhere = KafkaSettings(bootstrap="127.0.0.1:1")
    with pytest.raises(Unavailable, match="the champion stays"):
        publish.announce(nowhere, made(tmp_path, "v1"), timeout_s=2)
    with pytest.raises(Unavailable, match="Kafka at 127"):
        publish.champion(nowhere, timeout_s=2)

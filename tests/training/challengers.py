"""Challengers and champions built by hand: what `deploy` reads, without a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from afterclick import artifact
from afterclick.model import Model
from afterclick.settings import Settings
from tests.scoring.examples import a_model
from training import publish, workspace
from training.challenger import Evaluation, RunMetadata
from training.mlflow_registry import MlflowRegistry


def add_challenger(
    settings: Settings, version: str, model: Model | None = None, **evaluation: Any
) -> RunMetadata:
    """The latest challenger, evaluated against the current champion; passed by default."""
    root = settings.home / "challengers"
    for name in ("model", "holdout_model"):
        an_artifact(root / version, name, model)
    lineage = {"positions": {"reviews/0": 7}}
    run = RunMetadata(version=version, cut_ms=0, parameters={}, lineage=lineage, seconds={})
    champion = publish.champion(settings.kafka)
    values = {
        "questions": 0,
        "metrics": {},
        "against": {},
        "passed": True,
        "verdict": "passed",
        "reason": "sound",
    }
    run.write(root / version)
    Evaluation(champion=champion.version if champion else None, **{**values, **evaluation}).write(
        root / version
    )
    workspace.set_latest(root, version)
    return run


def add_champion(settings: Settings, version: str, model: Model | None = None) -> None:
    """A model that is registered and published, with its aliases."""
    registry = MlflowRegistry(settings)
    folder = an_artifact(settings.artifacts, version, model)
    registry.register(folder, registry.start(version, {}, {}), {})
    publish.announce(settings.kafka, folder)
    registry.sync_aliases(version)


def an_artifact(root: Path, version: str, model: Model | None = None, **manifest: Any) -> Path:
    """A small model as an artifact."""
    model = replace(model or a_model(), version=version)
    values = {"created": "now", "items": len(model), **manifest}
    return artifact.write(root, version, model.save, **values)[0]

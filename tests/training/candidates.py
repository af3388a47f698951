"""Candidates and champions made by hand: what `deploy` finds, without the training before it."""

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


def candidate(
    settings: Settings, version: str, model: Model | None = None, **verdict: Any
) -> RunMetadata:
    """The newest candidate, evaluated beside the champion of now; passed, if `verdict` says nothing else."""
    root = settings.home / "candidates"
    for name in ("model", "twin"):
        an_artifact(root / version, name, model)
    facts = RunMetadata(
        version=version,
        cut_ms=0,
        parameters={},
        lineage={"positions": {"reviews/0": 7}},
        seconds={},
    )
    champion = publish.champion(settings.kafka)
    known = {"questions": 0, "metrics": {}, "against": {}, "passed": True, "reason": "sound"}
    evaluation = Evaluation(champion=champion.version if champion else None, **{**known, **verdict})
    (root / version / "facts.json").write_text(facts.model_dump_json())
    (root / version / "evaluation.json").write_text(evaluation.model_dump_json())
    workspace.set_latest(root, version)
    return facts


def champion(settings: Settings, version: str, model: Model | None = None) -> None:
    """A model that is registered, announced and followed by the aliases."""
    registry = MlflowRegistry(settings)
    folder = an_artifact(settings.artifacts, version, model)
    registry.register(folder, registry.start(version, {}, {}), {})
    publish.announce(settings.kafka, folder)
    registry.follow(version)


def an_artifact(root: Path, version: str, model: Model | None = None) -> Path:
    """A small model as an artifact."""
    made = replace(model or a_model(), version=version)
    return artifact.write(root, version, made.save, created="now", items=len(made))[0]

"""What `train` hands to `eval` and `deploy`: the model on everything, and its twin as of the holdout's cut.

writes  artifact  <home>/candidates/<version>/model, <home>/candidates/<version>/twin
        json      <home>/candidates/<version>/facts.json, evaluation.json

The twin has never seen the holdout, so that it may be asked about it; it is kept beside the champion
(<home>/twins/<version>) for the day a challenger comes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from afterclick import artifact
from afterclick.errors import BadArtifact
from afterclick.features import FEATURE_NAMES
from training import ann_index
from training.fit import Fitted
from training.holdout import Score

RANKER = "ranker.txt"


class RunMetadata(BaseModel):
    """Where a candidate came from."""

    model_config = ConfigDict(frozen=True)

    version: str
    cut_ms: int
    parameters: dict[str, Any]
    lineage: dict[str, Any]
    seconds: dict[str, float]


class Evaluation(BaseModel):
    """How a candidate did on the holdout."""

    model_config = ConfigDict(frozen=True)

    questions: int
    metrics: dict[str, float]
    against: dict[str, dict[str, float]]
    """`trends`, `champion`: the same figures of what it was compared with"""
    champion: str | None
    """the version that was the champion then"""
    passed: bool
    reason: str


def write_model(
    root: Path, version: str, fitted: Fitted, ranker: str | None, facts: RunMetadata
) -> Path:
    """Write a fitted model, its FAISS index and its ranker as the artifact `root/version`."""
    arrays = fitted.model
    parameters = facts.parameters | arrays.parameters()
    built = {}
    if arrays.factors is not None:
        built[ann_index.FILE], report = ann_index.make(arrays.factors, fitted.user_factors)
        parameters |= {"index": report.facts()}
    if arrays.towers is not None:
        queries = ann_index.unit(arrays.towers.history[:500])
        queries = np.pad(queries, ((0, 0), (0, 1)), constant_values=1.0)
        built[ann_index.TOWERS], report = ann_index.make(arrays.towers.targets, queries)
        parameters |= {"tower_index": report.facts()}
    if arrays.content is not None and (content := ann_index.of_content(arrays.content)) is not None:
        built[ann_index.CONTENT] = content

    def fill(folder: Path) -> None:
        arrays.save(folder)
        for name, made in built.items():
            ann_index.write(made, folder, name)
        if ranker is not None:
            (folder / RANKER).write_text(ranker)

    made = datetime.now(UTC).isoformat(timespec="seconds")
    known = {
        "created": made,
        "items": len(arrays),
        "parameters": parameters,
        "lineage": facts.lineage,
    }
    return artifact.write(root, version, fill, **known)[0]


def copy_model(source: Path, root: Path, version: str, metrics: dict[str, float]) -> Path:
    """Copy an artifact under a root as `version`, with metrics in its manifest. Left alone if it is there."""
    manifest = artifact.read_manifest(source)
    artifact.verify(source, manifest)

    def fill(folder: Path) -> None:
        for name in manifest.files:
            shutil.copyfile(source / name, folder / name)

    if not (root / version).exists():
        facts = manifest.model_dump(include={"created", "items", "parameters", "lineage"})
        artifact.write(root, version, fill, metrics=metrics, **facts)
    return root / version


def score_of(folder: Path) -> Score | None:
    """The ranker of an artifact whose hashes were checked, None where it has none. Raises BadArtifact."""
    path = folder / RANKER
    if not path.is_file():
        return None
    import lightgbm

    booster = lightgbm.Booster(model_str=path.read_text())
    names = booster.feature_name()
    if not set(names) <= set(FEATURE_NAMES):
        raise BadArtifact(f"{path}: has features that this program does not know; train again")
    columns = [
        FEATURE_NAMES.index(name) for name in names
    ]  # fewer, where it is older than a feature
    return lambda rows: np.asarray(booster.predict(rows[:, columns], num_threads=1), np.float64)


def flat(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters with dotted names."""
    out: dict[str, Any] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out

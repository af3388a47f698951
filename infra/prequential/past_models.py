"""The models of a replay: trained on a schedule by the one recipe, or those that were published.

reads   artifact  the published models
writes  artifact  a model for each training
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import numpy as np

from afterclick.artifact import Manifest, read_manifest
from afterclick.errors import BadArtifact, BadInput
from serving.state.loaded_models import LoadedModel, load, no_model
from training.challenger import RunMetadata, write_model
from training.event_log import EventLog
from training.fit import ModelTrainer
from training.interactions import TooFewInteractions


class Retrain(StrEnum):
    """Which models serve: one of the start, further ones at intervals, or those of the home
    folder."""

    NEVER = "never"
    WEEKLY = "weekly"
    DAILY = "daily"
    PUBLISHED = "published"

    @property
    def every_s(self) -> int | None:
        """Seconds between two trainings; None: there are none after the start."""
        return {"weekly": 7 * 86_400, "daily": 86_400}.get(self)

    def cut_ms(self, from_ms: int, now_ms: int) -> int:
        """When the model that serves at `now_ms` was trained, or `now_ms` for published ones."""
        if self is Retrain.PUBLISHED:
            return now_ms
        if self.every_s is None:
            return from_ms
        every_ms = self.every_s * 1000
        return from_ms + (now_ms - from_ms) // every_ms * every_ms


SCHEDULES = (Retrain.NEVER, Retrain.WEEKLY, Retrain.DAILY)


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model, and the event time before which its training data ends."""

    loaded: LoadedModel
    end_ms: int


class Models(Protocol):
    """Supplies the model that a training at a moment gives."""

    def at(self, cut_ms: int) -> TrainedModel:
        """The model of the events before `cut_ms`. Raises TooFewInteractions."""
        ...


class RecipeModels:
    """Models of one recipe, written as artifacts and loaded as serving loads them."""

    def __init__(self, trainer: ModelTrainer, log: EventLog, folder: Path) -> None:
        self._trainer, self._log, self._folder = trainer, log, folder

    def at(self, cut_ms: int) -> TrainedModel:
        past = self._log.before(cut_ms)
        require_enough(past, self._trainer.config.min_interactions)
        version = f"as-of-{np.datetime_as_string(np.datetime64(cut_ms, 'ms'), 's')}"
        version = version.replace(":", "")  # part of a folder's name
        fitted = self._trainer.fit(past, version)
        try:
            trees = self._trainer.fit_ranker(past).trees
        except TooFewInteractions:  # as in the pipeline
            trees = None
        lineage = {"newest_ms": int(past.time_ms[-1])}
        run = RunMetadata(
            version=version, cut_ms=cut_ms, parameters={}, lineage=lineage, seconds={}
        )
        folder = write_model(self._folder, version, fitted, trees, run)
        loaded = load(folder, None)
        shutil.rmtree(folder)  # it is in memory, and a daily schedule has many
        return TrainedModel(loaded, int(past.time_ms[-1]) + 1)


class PublishedModels:
    """The models in a folder of artifacts: each is served from its creation to that of the next.

    Promotions and rollbacks are not known, nor are deleted models: before the first model that is
    left, there is none.
    """

    def __init__(self, artifacts: Path) -> None:
        """Raises BadInput without artifacts, BadArtifact for one of an earlier version."""
        versions = artifacts.glob("[!.]*/")  # not the folders that are being written
        found = [(read_manifest(folder), folder) for folder in versions if folder.is_dir()]
        if not found:
            raise BadInput(f"{artifacts} has no models: train one, or choose another --retrain")
        self._found = sorted((_created_ms(m), _end_ms(m), folder) for m, folder in found)
        self._served = TrainedModel(no_model(), 0)
        self._folder: Path | None = None

    def at(self, cut_ms: int) -> TrainedModel:
        """The newest model that was created by `cut_ms`."""
        newest = [entry for entry in self._found if entry[0] <= cut_ms][-1:]
        for _, end_ms, folder in newest:
            if folder != self._folder:
                self._folder, self._served = folder, TrainedModel(load(folder, None), end_ms)
        return self._served


def _created_ms(manifest: Manifest) -> int:
    return int(datetime.fromisoformat(manifest.created).timestamp() * 1000)


def _end_ms(manifest: Manifest) -> int:
    newest_ms = manifest.lineage.get("newest_ms")
    if newest_ms is None:
        raise BadArtifact(f"{manifest.version}: no newest_ms in its lineage: train the model again")
    return int(newest_ms) + 1


def require_enough(past: EventLog, min_interactions: int) -> None:
    """Raises TooFewInteractions if the events are too few for any model."""
    pairs = past.pairs()
    few = not len(pairs) or int(pairs.item_counts().max()) < min_interactions
    if few or int(pairs.user_counts().max()) < 2:
        raise TooFewInteractions("too few interactions before it to train a model on")

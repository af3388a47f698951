"""Delete models that nothing needs any more; runs after each publication.

reads   redis   models: versions that APIs serve or have in experiments
        topic   models: the champion
        json    <home>/anchor.json
deletes folder  <home>/artifacts/<version>, <home>/holdout_models/<version>
        s3      <store>/<version>/
        mlflow  registered versions, and model files of their runs and of refused ones; old runs

Kept are the champion, the previous one, the anchor, the versions that an API has used within a
week, and the newest `training.keep_models` others. A step that fails is repeated with the next
publication: uploads go first, the registered version, which names them, last.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import structlog

from afterclick.artifact import MANIFEST
from afterclick.errors import AfterclickError
from afterclick.settings import Settings
from training import publish
from training.challenger import HOLDOUT_MODELS
from training.mlflow_registry import EXPERIMENT, MlflowRegistry, now_ms
from training.workspace import Anchor, models_in_use

log = structlog.get_logger()
_DAY_MS = 86_400_000


def prune(settings: Settings) -> list[str]:
    """Delete old models and runs; returns the versions deleted.

    An error is logged and deletes nothing more: the model that was just published matters more.
    """
    try:
        return _Pruning(settings, MlflowRegistry(settings)).run()
    except Exception as error:  # any error of MLflow or of an object store
        expected = isinstance(error, AfterclickError | OSError)
        log.warning("old models not deleted", error=repr(error), exc_info=not expected)
        return []


@dataclass
class _Pruning:
    settings: Settings
    registry: MlflowRegistry

    def run(self) -> list[str]:
        used = models_in_use(self.settings)
        if used is None:
            return []
        versions = self._versions()
        kept = self._kept(used, versions)
        old = [version for version in versions if version not in kept]
        for version in old:
            self._delete(version)
            log.info("model deleted", version=version)
        self._delete_runs(kept)
        return old

    def _versions(self) -> list[str]:
        """Every version of this installation, newest first."""
        home = self.settings.home
        folders = (
            folder.name
            for root in (self.settings.artifacts, home / HOLDOUT_MODELS)
            for folder in (root.iterdir() if root.is_dir() else ())
            if folder.is_dir() and not folder.name.startswith(".")
        )
        registered = [model.version for model in self.registry.models()]
        unregistered = sorted(set(folders) - set(registered), reverse=True)
        return [*registered, *unregistered]

    def _kept(self, used: set[str], versions: list[str]) -> set[str]:
        champion = publish.champion(self.settings.kafka)
        anchor = Anchor.read(self.settings.home)
        kept = used | {known.version for known in (champion, anchor) if known is not None}
        kept |= {model.version for model in self.registry.models() if model.aliases}
        others = [version for version in versions if version not in kept]
        return kept | set(others[: self.settings.training.keep_models])

    def _delete(self, version: str) -> None:
        if self.settings.training.store:
            _delete_upload(self.settings.training.store, version)
        for root in (self.settings.artifacts, self.settings.home / HOLDOUT_MODELS):
            shutil.rmtree(root / version, ignore_errors=True)
        model = self.registry.find(version)
        if model is not None:
            self.registry.delete(model)

    def _delete_runs(self, kept: set[str]) -> None:
        """Delete old runs, and the model files of those whose model is not kept."""
        newest = self.settings.training.keep_models
        oldest_ms = now_ms() - self.settings.training.run_days * _DAY_MS
        for n, run in enumerate(self.registry.runs(EXPERIMENT)):
            if run.info.start_time < oldest_ms and run.data.tags.get("version") not in kept:
                self.registry.delete_run(run)
            elif n >= newest and run.data.tags.get("version") not in kept:
                self.registry.delete_model_files(run)


def _delete_upload(root: str, version: str) -> None:
    """Delete a version below `root` (s3://bucket/prefix); its manifest first, so that no reader
    takes the rest for a model."""
    import boto3

    parts = urlsplit(root)
    prefix = "/".join(filter(None, [parts.path.strip("/"), version])) + "/"
    client: Any = boto3.client("s3")
    client.delete_object(Bucket=parts.netloc, Key=prefix + MANIFEST)
    for page in client.get_paginator("list_objects_v2").paginate(
        Bucket=parts.netloc, Prefix=prefix
    ):
        for entry in page.get("Contents", ()):
            client.delete_object(Bucket=parts.netloc, Key=entry["Key"])

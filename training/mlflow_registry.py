"""The record of every training run, and of which model is champion, in MLflow.

writes  mlflow  runs (parameters, metrics, files, signature), the registered model `afterclick` with the
                aliases champion, previous, challenger

The `models` topic decides what is served; the aliases follow it. Where a run was killed between the two,
whoever asks next for a model lets them catch up.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from mlflow.entities import Metric, Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from afterclick.artifact import MANIFEST, read_manifest, sha256
from afterclick.errors import BadInput, Unavailable
from afterclick.settings import Settings
from training import publish, signature
from training.challenger import flat

log = structlog.get_logger()
MODEL = "afterclick"
EXPERIMENT = "afterclick"
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class RegisteredModel:
    """One registered version."""

    version: str
    """The artifact's version."""
    number: int
    """MLflow's own number."""
    run_id: str
    """Empty where a killed training never told of it."""
    aliases: tuple[str, ...]
    folder: Path
    tags: dict[str, str]


class MlflowRegistry:
    """MLflow, as far as this project needs it."""

    def __init__(self, settings: Settings) -> None:
        for name in ("mlflow.store.db.utils", "alembic"):  # they narrate their migrations
            logging.getLogger(name).setLevel(logging.WARNING)
        settings.home.mkdir(parents=True, exist_ok=True)
        self._files, self._artifacts, self._kafka = (
            settings.mlflow_files,
            settings.artifacts,
            settings.kafka,
        )
        self._caught_up = False
        self.client = MlflowClient(tracking_uri=settings.mlflow, registry_uri=settings.mlflow)

    def experiment(self, name: str = EXPERIMENT) -> str:
        """The id of an experiment; made where it is missing, its files where the settings say."""
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        return str(self.client.create_experiment(name, artifact_location=self._files))

    def start(
        self,
        name: str,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
        began_ms: int | None = None,
    ) -> str:
        """Begin a run, now or at a moment that has passed; returns its id."""
        run = self.client.create_run(self.experiment(), began_ms, dict(tags), name)
        run_id = str(run.info.run_id)
        known = [Param(key, str(value)) for key, value in flat(parameters).items()]
        self.client.log_batch(run_id, params=known)
        return run_id

    def metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Record figures; `@` is not allowed in MLflow's names and becomes `_at_`."""
        now = int(time.time() * 1000)
        known = [
            Metric(key.replace("@", "_at_"), float(value), now, 0) for key, value in metrics.items()
        ]
        self.client.log_batch(run_id, metrics=known)

    def files(self, run_id: str, folder: Path) -> None:
        """Attach every file of a folder to a run."""
        self.client.log_artifacts(run_id, str(folder), folder.name)

    def describe(self, run_id: str) -> None:
        """Attach the model's signature and an input example to a run."""
        with tempfile.TemporaryDirectory(prefix="afterclick-signature-") as folder:
            signature.write(Path(folder), run_id)
            self.client.log_artifacts(run_id, folder, "model")

    def finish(self, run_id: str, status: str = "FINISHED", reason: str | None = None) -> None:
        """End a run: FINISHED, FAILED or KILLED, with the reason as a tag."""
        if reason:
            self.client.set_tag(run_id, "reason", reason[:500])
        self.client.set_terminated(run_id, status)

    def fail(self, run_id: str, step: str, reason: str) -> None:
        """End a run as FAILED, with the step too as a tag."""
        self.client.set_tag(run_id, "step", step)
        self.finish(run_id, "FAILED", reason)

    def mend(self, run_id: str) -> None:
        """End a run well, also one that failed before."""
        tags = self.client.get_run(run_id).data.tags
        for stale in {"step", "reason"} & set(tags):
            self.client.delete_tag(run_id, stale)
        self.finish(run_id)

    def register(
        self, folder: Path, run_id: str | None, tags: Mapping[str, str]
    ) -> RegisteredModel:
        """Put an artifact into the registry as the challenger; the same version only once."""
        version = read_manifest(folder).version
        try:
            self.client.create_registered_model(MODEL)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = self.find(version)
        if known is None:
            facts = {
                "version": version,
                "folder": str(folder.absolute()),
                "manifest": sha256(folder / MANIFEST),
            }
            made = self.client.create_model_version(
                MODEL, folder.absolute().as_uri(), run_id=run_id, tags={**facts, **tags}
            )
            self._alias("challenger", int(made.version))
            known = self.get(version)
        return known

    def entries(self) -> list[RegisteredModel]:
        """Every registered version, newest first."""
        try:
            aliases = self.client.get_registered_model(MODEL).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return []
        found = self.client.search_model_versions(f"name = '{MODEL}'")
        entries = [_entry(v, aliases) for v in found]
        return sorted(entries, key=lambda e: -e.number)

    def find(self, version: str) -> RegisteredModel | None:
        """The entry of an artifact's version, or None."""
        return next((e for e in self.entries() if e.version == version), None)

    def get(self, version: str) -> RegisteredModel:
        """The entry of a version, or of an alias, which then says what the topic says. Raises BadInput."""
        self._catch_up()
        for entry in self.entries():
            if entry.version == version or version in entry.aliases:
                return entry
        known = ", ".join(e.version for e in self.entries()[:5]) or "none"
        raise BadInput(f"no model {version!r} in the registry; the newest are: {known}")

    def follow(self, champion: str) -> None:
        """Let the aliases say what the topic says: `champion` is served, what was before it is `previous`.

        A champion that a killed run did not register is registered; its run has gone well.
        """
        new = self.find(champion) or self._adopt(champion)
        if new is None:
            return
        if "champion" not in new.aliases:
            old = next((e for e in self.entries() if "champion" in e.aliases), None)
            if old is not None:
                self._alias("previous", old.number)
            self._alias("champion", new.number)
            if new.run_id:
                self.mend(new.run_id)
        if "challenger" in new.aliases:
            self.client.delete_registered_model_alias(MODEL, "challenger")

    def _catch_up(self) -> None:
        """Follow the topic, once; without Kafka the aliases stay as they are."""
        if self._caught_up:
            return
        self._caught_up = True
        try:
            served = publish.champion(self._kafka, _PATIENCE_S)
        except Unavailable as error:
            log.warning("the aliases may be behind the topic", error=str(error))
            return
        if served is not None:
            self.follow(served.version)

    def _adopt(self, version: str) -> RegisteredModel | None:
        folder = self._artifacts / version
        if not (folder / MANIFEST).is_file():
            return None
        return self.register(folder, None, read_manifest(folder).lineage)

    def _alias(self, alias: str, number: int) -> None:
        self.client.set_registered_model_alias(MODEL, alias, str(number))


def _entry(version: ModelVersion, aliases: Mapping[str, str]) -> RegisteredModel:
    number = int(version.version)
    tags = {str(k): str(v) for k, v in version.tags.items()}
    return RegisteredModel(
        version=tags.get("version", str(number)),
        number=number,
        run_id=str(version.run_id or ""),
        aliases=tuple(sorted(a for a, n in aliases.items() if int(n) == number)),
        folder=Path(tags.get("folder", "")),
        tags=tags,
    )

"""Training runs and registered models in MLflow.

writes  mlflow  runs: parameters, metrics, files, model signature; failed runs with step and reason
                the registered model `afterclick` with the aliases champion, previous, challenger

The `models` topic decides which model is served; the aliases follow it. If a process is killed
between the two writes, the next command that reads the registry repairs the aliases.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from afterclick.artifact import MANIFEST, read_manifest, sha256
from afterclick.errors import BadInput, Unavailable
from afterclick.settings import Settings
from training import publish
from training.workspace import MissingStep

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

log = structlog.get_logger()
MODEL = "afterclick"
EXPERIMENT = "afterclick"
EXAMPLE = {"items": ["B007WTAJTO"], "n": 10}
"""Input example: the items viewed now (newest first), the length of the list."""
_KAFKA_TIMEOUT_S = 5.0
_NOT_PARAMETERS = {"master", "memory", "mlflow_uri"}


@dataclass(frozen=True)
class RegisteredModel:
    """One registered version."""

    version: str
    """The artifact's version."""
    number: int
    """MLflow's version number."""
    run_id: str
    """Empty if the training was killed before it registered the model."""
    aliases: tuple[str, ...]
    folder: Path
    tags: dict[str, str]


class MlflowRegistry:
    """The runs and the registered model of one installation."""

    def __init__(self, settings: Settings) -> None:
        from mlflow.tracking import MlflowClient  # takes seconds to import

        for name in ("mlflow.store.db.utils", "alembic"):  # they log every migration
            logging.getLogger(name).setLevel(logging.WARNING)
        settings.home.mkdir(parents=True, exist_ok=True)
        self._settings = settings
        self._synced = False
        self.client = MlflowClient(tracking_uri=settings.mlflow, registry_uri=settings.mlflow)

    def experiment(self, name: str = EXPERIMENT) -> str:
        """The id of an experiment; created if missing, with its files where the settings say."""
        known = self.client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        files = self._settings.mlflow_files
        return str(self.client.create_experiment(name, artifact_location=files))

    def start(
        self,
        name: str,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
        began_ms: int | None = None,
    ) -> str:
        """Create a run that started at `began_ms` (default: now); returns its id."""
        from mlflow.entities import Param

        run = self.client.create_run(self.experiment(), began_ms, dict(tags), name)
        run_id = str(run.info.run_id)
        params = [Param(key, str(value)) for key, value in flatten(parameters).items()]
        self.client.log_batch(run_id, params=params)
        return run_id

    def metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Log metrics; `@`, which MLflow does not allow in names, becomes `_at_`."""
        from mlflow.entities import Metric

        now = now_ms()
        batch = [
            Metric(key.replace("@", "_at_"), float(value), now, 0) for key, value in metrics.items()
        ]
        self.client.log_batch(run_id, metrics=batch)

    def files(self, run_id: str, folder: Path) -> None:
        """Attach every file of a folder to a run."""
        self.client.log_artifacts(run_id, str(folder), folder.name)

    def log_signature(self, run_id: str, *, loadable: bool = True) -> None:
        """Attach the model's signature and an input example to a run.

        `loadable`: the run has the model's files, so that `mlflow.pyfunc.load_model` can load it.
        """
        with tempfile.TemporaryDirectory(prefix="afterclick-signature-") as folder:
            _write_signature(Path(folder), run_id, loadable)
            self.client.log_artifacts(run_id, folder, "model")

    def finish(self, run_id: str, status: str = "FINISHED", **tags: str) -> None:
        """End a run as FINISHED, FAILED or KILLED; `step` and `reason` of an earlier end go."""
        known = self.client.get_run(run_id).data.tags
        for stale in {"step", "reason"} & set(known) - set(tags):
            self.client.delete_tag(run_id, stale)
        for name, value in tags.items():
            self.client.set_tag(run_id, name, value[:500])
        self.client.set_terminated(run_id, status)

    def register(
        self, folder: Path, run_id: str | None, tags: Mapping[str, str]
    ) -> RegisteredModel:
        """Register an artifact as the challenger; a registered version stays as it is."""
        version = read_manifest(folder).version
        self._create_model()
        if self.find(version) is None:
            origin = {
                "version": version,
                "folder": str(folder.absolute()),
                "manifest": sha256(folder / MANIFEST),
            }
            created = self.client.create_model_version(
                MODEL, folder.absolute().as_uri(), run_id=run_id, tags={**origin, **tags}
            )
            self._set_alias("challenger", int(created.version))
        return self._find_or_raise(version)

    def models(self) -> list[RegisteredModel]:
        """Every registered version, newest first."""
        from mlflow.exceptions import MlflowException

        try:
            aliases = self.client.get_registered_model(MODEL).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return []
        versions = self.client.search_model_versions(f"name = '{MODEL}'")
        return sorted((_registered(v, aliases) for v in versions), key=lambda m: -m.number)

    def find(self, version: str) -> RegisteredModel | None:
        """The model of an artifact's version, or None."""
        return next((m for m in self.models() if m.version == version), None)

    def get(self, version: str) -> RegisteredModel:
        """The model of a version or alias; the aliases follow the topic first. Raises BadInput."""
        self._sync_once()
        return self._find_or_raise(version)

    def delete(self, model: RegisteredModel) -> None:
        """Delete a registered version, and the model files of its run."""
        if model.run_id:
            self.delete_model_files(self.client.get_run(model.run_id))
        self.client.delete_model_version(MODEL, str(model.number))

    def runs(self, experiment: str) -> Iterator[Run]:
        """The runs of an experiment, newest first."""
        token, ids = None, [self.experiment(experiment)]
        while True:
            page = self.client.search_runs(
                ids, order_by=["attributes.start_time DESC"], page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def delete_model_files(self, run: Run) -> None:
        """Delete a run's model, not its report; the tag `model_files` says so."""
        if run.data.tags.get("model_files") != "deleted":
            self._delete_files(run, "model")
            self.client.set_tag(run.info.run_id, "model_files", "deleted")

    def _delete_files(self, run: Run, folder: str | None = None) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        files: Any = get_artifact_repository(run.info.artifact_uri)
        with suppress(MlflowException):  # there are none
            if files.list_artifacts(folder):
                files.delete_artifacts(folder)

    def delete_run(self, run: Run) -> None:
        """Delete a run and its files. `mlflow gc` removes its rows from the database."""
        self._delete_files(run)
        self.client.delete_run(run.info.run_id)

    def sync_aliases(self, champion: str) -> None:
        """Set the alias `champion` to this version and `previous` to the one before it.

        Registers the version if the process that published it was killed before it could.
        """
        new = self.find(champion) or self._register_missing(champion)
        if new is None:
            return
        if "champion" not in new.aliases:
            old = next((m for m in self.models() if "champion" in m.aliases), None)
            if old is not None:
                self._set_alias("previous", old.number)
            self._set_alias("champion", new.number)
            if new.run_id:
                self.finish(new.run_id)
        if "challenger" in new.aliases:
            self.client.delete_registered_model_alias(MODEL, "challenger")

    def _create_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(MODEL)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _find_or_raise(self, version: str) -> RegisteredModel:
        models = self.models()
        for model in models:
            if model.version == version or version in model.aliases:
                return model
        known = ", ".join(m.version for m in models[:5]) or "none"
        raise BadInput(f"no model {version!r} in the registry; the newest are: {known}")

    def _sync_once(self) -> None:
        """Sync the aliases with the topic; without Kafka they stay as they are."""
        if self._synced:
            return
        self._synced = True
        try:
            champion = publish.champion(self._settings.kafka, _KAFKA_TIMEOUT_S)
        except Unavailable as error:
            log.warning("cannot sync MLflow's aliases with the topic", error=str(error))
            return
        if champion is not None:
            self.sync_aliases(champion.version)

    def _register_missing(self, version: str) -> RegisteredModel | None:
        folder = self._settings.artifacts / version
        if not (folder / MANIFEST).is_file():
            return None
        return self.register(folder, None, read_manifest(folder).lineage)

    def _set_alias(self, alias: str, number: int) -> None:
        self.client.set_registered_model_alias(MODEL, alias, str(number))


def _registered(version: ModelVersion, aliases: Mapping[str, str]) -> RegisteredModel:
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


def flatten(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _write_signature(folder: Path, run_id: str, loadable: bool) -> None:
    """Write MLmodel and input_example.json.

    The flavour `python_function` is the sequence model alone: the ranker needs trends and the whole
    state of a user, so that only `afterclick serve` can serve it.
    """
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array

    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(Array(DataType.string), "items"),
        ColSpec(DataType.long, "n", required=False),
    ]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(Array(DataType.string), "item_id"),
        ColSpec(Array(DataType.double), "score"),
    ]
    model = Model(
        artifact_path="model",
        run_id=run_id,
        signature=ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs)),
        saved_input_example_info={"artifact_path": "input_example.json", "type": "json_object"},
    )
    if loadable:
        pyfunc.add_to_model(model, loader_module="training.mlflow_flavour")
    model.save(str(folder / "MLmodel"))
    (folder / "input_example.json").write_text(json.dumps(EXAMPLE, indent=1))


@dataclass
class Attempt:
    """A running step."""

    run_id: str | None = None
    """The challenger's run, once it exists."""


@contextmanager
def recorded(settings: Settings, step: str) -> Iterator[Attempt]:
    """Record an exception of the block as a failed run and re-raise it, except MissingStep."""
    attempt, began_ms = Attempt(), now_ms()
    try:
        yield attempt
    except MissingStep:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        record_failure(settings, step, reason, began_ms, attempt.run_id)
        raise


def record_failure(
    settings: Settings, step: str, reason: str, began_ms: int, run_id: str | None = None
) -> None:
    """Mark the run as failed, or create a failed run; log it if MLflow does not answer."""
    try:
        registry = MlflowRegistry(settings)
        if run_id is None:
            parameters = run_parameters(settings)
            run_id = registry.start(f"failed {step}", parameters, {"kind": "failed"}, began_ms)
        registry.finish(run_id, "FAILED", step=step, reason=reason)
    except Exception:  # any error of MLflow: the failure of the training matters more
        log.exception("cannot record a failed training in MLflow", step=step, reason=reason)


def run_parameters(settings: Settings) -> dict[str, Any]:
    """The training settings that identify a run."""
    return settings.training.model_dump(mode="json", exclude=_NOT_PARAMETERS)


def now_ms() -> int:
    return int(time.time() * 1000)

"""From the log to a served model, in four steps; each reads what the step before it wrote.

etl      log → tables                              <home>/etl/<version>
train    tables → model, holdout model, ranker     <home>/challengers/<version>
eval     models × holdout → gate decision          <home>/challengers/<version>/evaluation.json
deploy   decision → artifact, event, aliases       <home>/artifacts/<version>, models, MLflow;
         old models are deleted (training.pruning)

A step that is killed leaves no partial output and can be run again. The champion changes only by
the event on the topic.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from afterclick import model as models
from afterclick.artifact import read_manifest
from afterclick.errors import BadArtifact, BadInput
from afterclick.events import ModelPublished
from afterclick.settings import Settings
from afterclick.tree_ranker import TreeRanker
from training import (
    etl,
    event_log,
    fit,
    gate,
    gate_evaluation,
    interactions,
    pruning,
    publish,
    workspace,
)
from training.challenger import (
    BOOTSTRAP,
    HOLDOUT_MODELS,
    Evaluation,
    RunMetadata,
    copy_model,
    log_run,
    write_model,
)
from training.config import ModelConfig, ReplayConfig
from training.etl import EtlReport
from training.evaluation import holdout
from training.event_log import EventLog
from training.gate_evaluation import GateRun
from training.interactions import Interactions, TooFewInteractions
from training.mlflow_registry import MlflowRegistry, recorded, run_parameters
from training.models.content_vectors import ItemTexts
from training.workspace import (
    Anchor,
    LastTraining,
    MissingStep,
    approved_items,
    latest,
    spark_session,
)

log = structlog.get_logger()
Progress = Callable[[str], None]
CHECKPOINTS = "checkpoints"
"""Folder in the home with the state of a training that was killed; the next one continues it."""
OnModel = Callable[[fit.FittedModel, RunMetadata], None]


@dataclass(frozen=True)
class _Inputs:
    """What a training run learns from."""

    log: EventLog
    texts: ItemTexts
    config: ModelConfig
    cut_ms: int
    champion: ModelPublished | None

    @property
    def past(self) -> EventLog:
        """The events before the holdout."""
        return self.log.before(self.cut_ms)


class Pipeline:
    """The steps with one set of settings. `progress` receives one line per action."""

    def __init__(
        self,
        settings: Settings,
        progress: Progress = lambda _: None,
        on_served: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_served` is called after the bootstrap model has been published."""
        self.settings = settings
        self.progress = progress
        self.on_served = on_served
        self.home = settings.home

    def etl(self, *, full: bool = False) -> EtlReport:
        """Turn the log into tables, incrementally unless `full`."""
        with recorded(self.settings, "etl"), spark_session(self.settings) as session:
            version, report = etl.run(session, self.settings, self.progress, full=full)
        self.progress(
            f"tables {version}: {report.rows_out:,} of {report.rows_in:,} rows, "
            f"{report.items:,} items"
        )
        return report

    def train(self, on_first_model: OnModel | None = None) -> RunMetadata:
        """Fit the model, the holdout model and the ranker.

        Without a champion, `on_first_model` receives the model before the slower parts are fitted.
        Raises TooFewInteractions, or Refused for a model that fails its checks.
        """
        with recorded(self.settings, "train"):
            etl_version, tables = latest(self.home / "etl", "pipeline etl")
            inputs = self._inputs(tables)
            seconds: dict[str, float] = {}
            with (
                fit.trainer(self.settings, inputs.texts, inputs.config) as base,
                workspace.new_version(self.home / "challengers") as (version, folder),
            ):
                trainer = replace(
                    base,
                    checkpoints=self.home / CHECKPOINTS,
                    previous=self._previous(inputs),
                )
                run = RunMetadata(
                    version=version,
                    cut_ms=inputs.cut_ms,
                    parameters=run_parameters(self.settings) | inputs.config.preset_values(),
                    lineage=_lineage(tables, etl_version, inputs.log),
                    seconds={},
                )
                fitted = self._fit(trainer, inputs, run, seconds, on_first_model)
                with self._timed(seconds, "holdout_model", "fitting the holdout model"):
                    holdout_model = trainer.fit(inputs.past, version)
                with self._timed(seconds, "ranker", "training the ranker on past days"):
                    ranker = self._train_ranker(trainer, inputs.past)
                run = run.model_copy(update={"seconds": seconds})
                write_model(folder, "model", fitted, ranker, run)
                write_model(folder, "holdout_model", holdout_model, ranker, run)
                run.write(folder)
            shutil.rmtree(self.home / CHECKPOINTS, ignore_errors=True)
            return run

    def evaluate(self) -> Evaluation:
        """Compare the challenger with champion, anchor and trends; write the decision."""
        with recorded(self.settings, "eval"):
            folder = latest(self.home / "challengers", "pipeline train")[1]
            run = RunMetadata.read(folder)
            champion = publish.champion(self.settings.kafka)
            version = champion.version if champion else None
            known = ReplayConfig.of(self.settings, approved_items(self.settings))
            gate_run = GateRun(folder, run, self._log_of(run), version, self.home, known)
            evaluation = gate_evaluation.evaluate(gate_run, self.settings.training, self.progress)
            evaluation.write(folder)
            self.progress(f"{evaluation.verdict}: {evaluation.reason}")
            return evaluation

    def deploy(self) -> ModelPublished:
        """Publish the latest challenger. Raises Refused if the gate refused it."""
        with recorded(self.settings, "deploy") as attempt:
            version, folder = latest(self.home / "challengers", "pipeline train")
            run, evaluation = RunMetadata.read(folder), Evaluation.read(folder)
            registry = MlflowRegistry(self.settings)
            run_id = attempt.run_id = log_run(registry, folder, run, evaluation)
            if not evaluation.passed:
                self._decided(run)
                pruning.prune(self.settings)
                raise gate.Refused(f"{version} is not published: {evaluation.reason}")
            champion = publish.champion(self.settings.kafka)
            if champion is not None and champion.version not in (evaluation.champion, version):
                raise BadInput(
                    f"the champion is now {champion.version}: run `afterclick pipeline eval` again"
                )
            metrics = evaluation.metrics
            target = copy_model(folder / "model", self.settings.artifacts, version, metrics)
            copy_model(folder / "holdout_model", self.home / HOLDOUT_MODELS, version, metrics)
            self._check(models.load(target)[0], run, champion)
            if champion is not None:  # else a kill before the next call loses the previous champion
                registry.sync_aliases(champion.version)
            registry.register(target, run_id, run.lineage)
            published = self._announce(target)
            if evaluation.new_anchor:
                Anchor(version=version).write(self.home)
            registry.sync_aliases(version)
            registry.finish(run_id)
            self._decided(run)
            self.progress(f"{version} is the champion")
            pruning.prune(self.settings)
            return published

    def run_all(self) -> tuple[EtlReport, Evaluation, ModelPublished]:
        """Run every step. Without a champion, a bootstrap model is published first."""
        with ExitStack() as stack:
            with recorded(self.settings, "etl"):
                stack.enter_context(spark_session(self.settings))
            report = self.etl()
            self.train(self.publish_bootstrap)
        evaluation = self.evaluate()
        return report, evaluation, self.deploy()

    def publish_bootstrap(self, fitted: fit.FittedModel, run: RunMetadata) -> None:
        """Publish an unevaluated bootstrap model; the gated one replaces it."""
        version = f"{run.version}{BOOTSTRAP}"
        target = write_model(self.settings.artifacts, version, fitted, None, run)
        self._announce(target)
        registry = MlflowRegistry(self.settings)
        run_id = registry.start(version, run.parameters, run.tags(version))
        registry.log_signature(run_id, loadable=False)
        registry.register(target, run_id, run.lineage)
        registry.sync_aliases(version)
        registry.finish(run_id)
        self.on_served()
        self.progress(f"{version} is served until the ranker is trained")

    def _inputs(self, tables: Path) -> _Inputs:
        settings = self.settings.training
        events = event_log.load(tables)
        cut_ms = holdout.cut_of(events, settings.holdout)
        _require_enough(events.before(cut_ms).pairs(), settings.min_interactions)
        return _Inputs(
            log=events,
            texts=interactions.load_catalogue(tables),
            config=ModelConfig.of(self.settings, approved=approved_items(self.settings)),
            cut_ms=cut_ms,
            champion=publish.champion(self.settings.kafka),
        )

    def _fit(
        self,
        trainer: fit.ModelTrainer,
        inputs: _Inputs,
        run: RunMetadata,
        seconds: dict[str, float],
        on_first_model: OnModel | None,
    ) -> fit.FittedModel:
        """The model on all rows, checked after each part to fail early."""
        events = inputs.log
        with self._timed(seconds, "model", f"fitting on {len(events):,} events"):
            fitted = trainer.without_towers(events, run.version)
        self._check(fitted.model, run, inputs.champion)
        if on_first_model is not None and inputs.champion is None:
            on_first_model(fitted, run)
        with self._timed(seconds, "towers", "training the sequence model"):
            fitted = trainer.with_towers(fitted, events)
        with self._timed(seconds, "ncf", "training NCF"):
            fitted = trainer.with_ncf(fitted, events)
        self._check(fitted.model, run, inputs.champion)
        return fitted

    def _previous(self, inputs: _Inputs) -> models.Model | None:
        """The champion, where a warm start needs it and its artifact is in this home folder."""
        towers, champion = inputs.config.towers, inputs.champion
        if towers is None or not towers.warm_start or champion is None:
            return None
        try:
            return models.load(self.settings.artifacts / champion.version)[0]
        except BadArtifact as error:
            self.progress(f"no warm start: {error}")
            return None

    def _train_ranker(self, trainer: fit.ModelTrainer, past: EventLog) -> TreeRanker | None:
        """The ranker; None with too little history."""
        try:
            result = trainer.fit_ranker(past)
        except TooFewInteractions as error:
            self.progress(f"no ranker: {error}")
            return None
        self.progress(f"ranker trained on {result.queries:,} queries")
        return result.trees

    def _log_of(self, run: RunMetadata) -> EventLog:
        tables = self.home / "etl" / str(run.lineage["etl"])
        if not tables.is_dir():
            raise MissingStep(f"{tables} does not exist: run `afterclick pipeline train` again")
        return event_log.load(tables)

    def _check(
        self, model: models.Model, run: RunMetadata, champion: ModelPublished | None
    ) -> None:
        """Raises Refused if the model cannot be served."""
        decision = gate.sanity_check(model, self._items_of(champion))
        if not decision.passed:
            self._decided(run)
            raise gate.Refused(f"{model.version} is not published: {decision.reason}")

    def _items_of(self, champion: ModelPublished | None) -> int | None:
        """The number of the champion's items; None if its artifact is not in this home folder."""
        if champion is None:
            return None
        try:
            return read_manifest(self.settings.artifacts / champion.version).items
        except BadArtifact:
            return None

    def _announce(self, artifact: Path) -> ModelPublished:
        store = self.settings.training.store
        return publish.announce(self.settings.kafka, artifact, store=store)

    def _decided(self, run: RunMetadata) -> None:
        """Record that the gate has decided on what this run has read."""
        positions = run.lineage["positions"]
        LastTraining(version=run.version, positions=positions).write(self.home)

    @contextmanager
    def _timed(self, seconds: dict[str, float], name: str, message: str) -> Iterator[None]:
        self.progress(message)
        start = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - start, 2)


def _require_enough(past: Interactions, min_rows: int) -> None:
    """Raises TooFewInteractions if those before the holdout are too few for any model."""
    if not len(past):
        problem = "none is older than the holdout"
    elif (most := int(past.item_counts().max())) < min_rows:
        problem = (
            f"before the holdout no item has {min_rows}, the most frequent one has {most} "
            "(AFTERCLICK_TRAINING__MIN_INTERACTIONS)"
        )
    elif past.user_counts().max() < 2:
        problem = "before the holdout no user has two"
    else:
        return
    raise TooFewInteractions(f"too few interactions to train on: {problem}; ingest more events")


def _lineage(tables: Path, etl_version: str, events: EventLog) -> dict[str, object]:
    report = EtlReport.read(tables)
    return {
        "etl": etl_version,
        "positions": report.positions,
        "rows": report.rows_out,
        "newest_ms": report.newest_ms,
        "data": events.fingerprint(),
        "commit": git_commit(),
    }


def git_commit() -> str:
    """The commit of the running code, `+` if files differ from it; empty outside a checkout."""
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")


def _git(*words: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()

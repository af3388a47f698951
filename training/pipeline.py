"""From the log to a served model, in steps that each read what the one before has written.

etl      log → tables                        <home>/etl/<version>
train    tables → model, twin and ranker     <home>/candidates/<version>
eval     twin on the holdout → verdict       <home>/candidates/<version>/evaluation.json, MLflow
deploy   verdict → artifact → announcement   <home>/artifacts/<version>, topic models, MLflow's aliases

A step that is killed leaves nothing behind that a later step would take for its output, so it is run again;
the champion changes by the announcement alone.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from pyspark.sql import SparkSession
from threadpoolctl import threadpool_limits

from afterclick import model as models
from afterclick.artifact import read_manifest
from afterclick.errors import BadArtifact, BadInput
from afterclick.events import ModelPublished
from afterclick.settings import Settings
from training import (
    catalogue,
    content,
    etl,
    failures,
    fit,
    gate,
    holdout,
    interactions,
    publish,
    ranker,
    spark,
    workspace,
)
from training.challenger import Evaluation, RunMetadata, copy_model, score_of, write_model
from training.etl import Report
from training.interactions import Interactions
from training.ranker import RankerConfig
from training.trained import Trained

if TYPE_CHECKING:
    from training.mlflow_registry import MlflowRegistry

log = structlog.get_logger()
Progress = Callable[[str], None]


class Pipeline:
    """The steps, with one set of settings. `progress` is told what happens, a line at a time."""

    def __init__(
        self,
        settings: Settings,
        progress: Progress = lambda _: None,
        on_served: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_served` is called when a model is served where there was none, long before the end."""
        self.settings = settings
        self.progress = progress
        self.on_served = on_served
        self.home = settings.home

    def etl(self, *, full: bool = False) -> Report:
        """Turn the log into tables, reading new files of it alone unless `full`."""
        with failures.recorded(self.settings, "etl"), spark.session(self.settings) as session:
            version, report = etl.run(session, self.settings, self.progress, full=full)
        self.progress(
            f"tables {version}: {report.rows_out:,} of {report.rows_in:,} rows, {report.items:,} items"
        )
        return report

    def train(self, early: Callable[[fit.Fitted, RunMetadata], None] | None = None) -> RunMetadata:
        """Fit the model, its twin and the ranker.

        Where nothing is served yet, `early` is handed the model before the slower rest.
        """
        with failures.recorded(self.settings, "train"):
            knobs = self.settings.training
            etl_version, tables = workspace.latest(self.home / "etl", "pipeline etl")
            rows, known = interactions.load(tables), catalogue.load(tables / "catalogue")
            config, cut = fit.FitConfig.of(knobs), holdout.cut_of(rows, knobs.holdout)
            champion = publish.champion(self.settings.kafka)
            seconds: dict[str, float] = {}
            with (
                spark.session(self.settings) as session,
                workspace.new_version(self.home / "candidates") as made,
            ):
                version, folder = made
                facts = RunMetadata(
                    version=version,
                    cut_ms=cut,
                    parameters=knobs.model_dump(
                        mode="json", exclude={"master", "memory", "mlflow_uri"}
                    ),
                    lineage=_lineage(tables, etl_version),
                    seconds={},
                )
                with self._timed(seconds, "model", f"fitting on {len(rows):,} interactions"):
                    final = fit.without_towers(session, rows, known, config, version)
                self._sound(final.model, facts, champion)
                if early is not None and champion is None:
                    early(final, facts)
                with self._timed(seconds, "towers", "training the two towers"):
                    final = fit.with_towers(final, rows, known, config)
                self._sound(final.model, facts, champion)
                with self._timed(seconds, "twin", "fitting the twin that has not seen the holdout"):
                    twin = fit.fit(session, rows.before(cut), known, config, version)
                with self._timed(seconds, "ranker", "training the ranker on past days"):
                    past = partial(_fit_past, session, known, config)
                    with threadpool_limits(1, "blas"):  # small products, one question at a time
                        text = self._ranker(rows.before(cut), past)
                facts = facts.model_copy(update={"seconds": seconds})
                write_model(folder, "model", final, text, facts)
                write_model(folder, "twin", twin, text, facts)
                (folder / "facts.json").write_text(facts.model_dump_json(indent=1))
            return facts

    def evaluate(self) -> Evaluation:
        """Ask the twin about the holdout, beside the champion's twin and plain trends; write the verdict."""
        with failures.recorded(self.settings, "eval"):
            folder = workspace.latest(self.home / "candidates", "pipeline train")[1]
            facts = read_facts(folder)
            rows = self._rows(facts)
            knobs = self.settings.training
            questions = holdout.make(
                rows, facts.cut_ms, knobs.least_reviews, knobs.questions, knobs.seed
            )
            self.progress(f"asking {questions.users:,} questions about the newest interactions")
            champion = publish.champion(self.settings.kafka)
            with threadpool_limits(1, "blas"):
                against = {
                    "trends": holdout.baseline(questions),
                    "champion": self._judge_champion(questions, champion),
                }
                mine = self._judge(questions, folder / "twin")
            verdict = gate.decide(mine, against)
            evaluation = Evaluation(
                questions=questions.users,
                metrics=means(mine or {}),
                against={
                    name: means(result) for name, result in against.items() if result is not None
                },
                champion=champion.version if champion else None,
                passed=verdict.passed,
                reason=verdict.reason,
            )
            (folder / "evaluation.json").write_text(evaluation.model_dump_json(indent=1))
            self.progress(evaluation.reason)
            return evaluation

    def deploy(self) -> ModelPublished:
        """Publish the newest candidate if its verdict allows. Raises Refused with the reason if not."""
        from training.mlflow_registry import MlflowRegistry

        with failures.recorded(self.settings, "deploy") as attempt:
            version, folder = workspace.latest(self.home / "candidates", "pipeline train")
            facts, evaluation = read_facts(folder), read_evaluation(folder)
            registry = MlflowRegistry(self.settings)
            run_id = attempt.run_id = self._record(registry, folder, facts, evaluation)
            if not evaluation.passed:
                Trained.of(facts).write(self.home)
                raise gate.Refused(f"{version} is not published: {evaluation.reason}")
            champion = publish.champion(self.settings.kafka)
            if champion is not None and champion.version not in (evaluation.champion, version):
                raise BadInput(
                    f"the champion is {champion.version} by now: run `afterclick pipeline eval` again"
                )
            target = copy_model(
                folder / "model", self.settings.artifacts, version, evaluation.metrics
            )
            copy_model(folder / "twin", self.home / "twins", version, evaluation.metrics)
            self._sound(models.load(target)[0], facts, champion)
            if champion is not None:  # else a kill before this would lose the one that goes now
                registry.follow(champion.version)
            registry.register(target, run_id, facts.lineage)
            published = publish.announce(
                self.settings.kafka, target, store=self.settings.training.store
            )
            registry.follow(version)
            registry.mend(run_id)
            Trained.of(facts).write(self.home)
            self.progress(f"{version} is the champion")
            return published

    def everything(self) -> tuple[Report, Evaluation, ModelPublished]:
        """All steps. Where nothing is served yet, the model without its ranker is published on the way."""
        with ExitStack() as stack:
            with failures.recorded(self.settings, "etl"):
                stack.enter_context(spark.session(self.settings))
            report = self.etl()
            self.train(self.publish_early)
        evaluation = self.evaluate()
        return report, evaluation, self.deploy()

    def publish_early(self, fitted: fit.Fitted, facts: RunMetadata) -> None:
        """Serve a model that is sound but not evaluated: better than none, and soon replaced."""
        first = f"{facts.version}-first"
        target = write_model(self.settings.artifacts, first, fitted, None, facts)
        publish.announce(self.settings.kafka, target, store=self.settings.training.store)
        from training.mlflow_registry import (
            MlflowRegistry,  # MLflow takes seconds to import: it serves by now
        )

        registry = MlflowRegistry(self.settings)
        tags = {k: str(v) for k, v in facts.lineage.items()} | {"version": first}
        run_id = registry.start(first, facts.parameters, tags)
        registry.describe(run_id)
        registry.register(target, run_id, facts.lineage)
        registry.follow(first)
        registry.finish(run_id)
        self.on_served()
        self.progress(f"{first} is served until the ranker is trained")

    def _ranker(self, rows: Interactions, build: ranker.Build) -> str | None:
        """The text of a ranker learned on past days; None where there is too little past."""
        knobs = self.settings.training
        config = RankerConfig(
            cuts=knobs.ranker_cuts,
            questions=knobs.ranker_questions,
            least=knobs.least_reviews,
            seed=knobs.seed,
        )
        try:
            blend = ranker.train(rows, build, config)
        except ranker.NotEnoughHistory as error:
            self.progress(f"no ranker: {error}")
            return None
        self.progress(f"ranker learned from {blend.questions:,} questions")
        return blend.text

    def _judge(self, questions: holdout.Holdout, folder: Path) -> gate.PerQueryMetrics | None:
        arrays, _ = models.load(folder)
        score = score_of(folder)
        return holdout.judge(questions, arrays, score) if score is not None else None

    def _judge_champion(
        self, questions: holdout.Holdout, champion: ModelPublished | None
    ) -> gate.PerQueryMetrics | None:
        twin = self.home / "twins" / champion.version if champion else None
        return self._judge(questions, twin) if twin is not None and twin.is_dir() else None

    def _rows(self, facts: RunMetadata) -> Interactions:
        tables = self.home / "etl" / str(facts.lineage["etl"])
        if not tables.is_dir():
            raise workspace.MissingStep(f"{tables} is gone: run `afterclick pipeline train` again")
        return interactions.load(tables)

    def _record(
        self, registry: MlflowRegistry, folder: Path, facts: RunMetadata, evaluation: Evaluation
    ) -> str:
        """The MLflow run of a candidate; deploying twice writes one run."""
        from training import run_report

        known = folder / "run"
        if known.is_file():
            return known.read_text()
        tags = {k: str(v) for k, v in facts.lineage.items()} | {"version": facts.version}
        run_id = registry.start(facts.version, facts.parameters, tags)
        against = {
            f"{n}.{k}": v for n, figures in evaluation.against.items() for k, v in figures.items()
        }
        seconds = {f"seconds.{k}": v for k, v in facts.seconds.items()}
        registry.metrics(run_id, evaluation.metrics | against | seconds)
        registry.files(run_id, folder / "model")
        registry.describe(run_id)
        run_report.write(folder / "report", facts, evaluation)
        registry.files(run_id, folder / "report")
        known.write_text(run_id)
        return run_id

    def _sound(
        self, arrays: models.Model, facts: RunMetadata, champion: ModelPublished | None
    ) -> None:
        verdict = gate.sanity_check(arrays, self._items(champion))
        if not verdict.passed:
            Trained.of(facts).write(self.home)
            raise gate.Refused(f"{arrays.version} is not published: {verdict.reason}")

    def _items(self, champion: ModelPublished | None) -> int | None:
        """How many items the champion has; None where its artifact is not kept here."""
        try:
            return (
                read_manifest(self.settings.artifacts / champion.version).items
                if champion
                else None
            )
        except BadArtifact:
            return None

    @contextmanager
    def _timed(self, seconds: dict[str, float], name: str, message: str) -> Iterator[None]:
        self.progress(message)
        start = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - start, 2)


def _fit_past(
    session: SparkSession, known: content.Catalogue, config: fit.FitConfig, rows: Interactions
) -> models.Model:
    return fit.fit(session, rows, known, config, "past").model


def read_facts(folder: Path) -> RunMetadata:
    """Where a candidate came from."""
    return RunMetadata.model_validate_json((folder / "facts.json").read_text())


def read_evaluation(folder: Path) -> Evaluation:
    """A candidate's verdict. Raises MissingStep before `eval` has run."""
    path = folder / "evaluation.json"
    if not path.is_file():
        raise workspace.MissingStep(
            f"{folder.name} has no evaluation: run `afterclick pipeline eval` first"
        )
    return Evaluation.model_validate_json(path.read_text())


def means(judged: gate.PerQueryMetrics) -> dict[str, float]:
    """protocol.metric → mean over the questions."""
    return {
        f"{protocol}.{name}": round(float(values.mean()), 5)
        for protocol, figures in judged.items()
        for name, values in figures.items()
        if len(values)
    }


def _lineage(tables: Path, etl_version: str) -> dict[str, object]:
    report = etl.read_report(tables)
    return {
        "etl": etl_version,
        "positions": report.positions,
        "rows": report.rows_out,
        "newest_ms": report.newest_ms,
        "data": interactions.fingerprint(tables),
        "commit": git_commit(),
    }


def git_commit() -> str:
    """The commit of the code that runs, with `+` where files differ from it; empty outside a checkout."""
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")


def _git(*words: str) -> str:
    where = Path(__file__).parent
    done = subprocess.run(["git", *words], cwd=where, capture_output=True, text=True, check=True)
    return done.stdout.strip()

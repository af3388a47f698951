"""Evaluate a challenger for the release gate: which models are asked, about what, and the verdict.

reads   artifact  <home>/challengers/<version>/model, holdout_model
        artifact  <home>/holdout_models/<version>   of the champion and of the anchor

Every model is asked through its holdout model, about interactions after the latest of their cuts.
A model without a learned ranker is scored by the fallback ranker, as in serving.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from threadpoolctl import threadpool_limits

from afterclick import model as models
from afterclick.artifact import read_manifest, verify
from afterclick.errors import BadArtifact
from afterclick.settings import TrainingSettings
from afterclick.tree_ranker import load_ranker
from training import gate
from training.challenger import BOOTSTRAP, HOLDOUT_MODELS, Evaluation, RunMetadata
from training.config import ReplayConfig
from training.evaluation import holdout
from training.evaluation.holdout import FinalCheck, PartRanks, PerQueryMetrics, RankedModel
from training.evaluation.list_choices import ListChoices, list_choices
from training.event_log import EventLog
from training.gate import Comparison
from training.workspace import Anchor


@dataclass(frozen=True)
class ReferenceModel:
    """A published model that a challenger is compared with, or the reason why it cannot be."""

    name: str
    version: str
    folder: Path
    margin: float
    cut_ms: int = 0
    """event time from which its holdout model has seen nothing"""
    problem: str | None = None

    @classmethod
    def of(
        cls, name: str, version: str, home: Path, margin: float, newest_ms: int
    ) -> ReferenceModel:
        """From <home>/holdout_models. `newest_ms`: event time of the newest event."""
        folder = home / HOLDOUT_MODELS / version
        problem, cut_ms = None, None
        try:
            manifest = read_manifest(folder)
            verify(folder, manifest)
            cut_ms = manifest.cut_ms
        except BadArtifact:
            problem = f"the holdout model of {version} is missing or damaged in this home folder"
        if problem is None and cut_ms is None:
            problem = f"the manifest of the holdout model of {version} has no cut_ms"
        if cut_ms is not None and cut_ms > newest_ms:
            problem = f"contaminated: the holdout model of {version} has seen the whole holdout"
        return cls(name, version, folder, margin, cut_ms or 0, problem)


@dataclass(frozen=True)
class GateRun:
    """A challenger, the log, and the versions it has to be compared with."""

    folder: Path
    """The challenger's folder."""
    run: RunMetadata
    log: EventLog
    champion: str | None
    home: Path
    known: ReplayConfig = field(default_factory=ReplayConfig)
    """What serving knows of users and trends."""

    @property
    def gated_champion(self) -> str | None:
        """The champion, unless it is a bootstrap model, which the gate has never seen."""
        return None if self.champion is None or self.champion.endswith(BOOTSTRAP) else self.champion

    def references(self, settings: TrainingSettings) -> list[ReferenceModel]:
        """Champion and anchor; only the champion if they are the same model."""
        anchor = Anchor.read(self.home)
        found = [("champion", self.gated_champion, settings.gate_margin)]
        if anchor is not None and anchor.version != self.gated_champion:
            found.append(("anchor", anchor.version, settings.anchor_margin))
        newest_ms = int(self.log.time_ms[-1])
        return [
            ReferenceModel.of(name, version, self.home, margin, newest_ms)
            for name, version, margin in found
            if version is not None
        ]


@dataclass(frozen=True)
class HoldoutMetrics:
    """The metrics of every model on the questions of the holdout."""

    asked: holdout.Holdout
    measured: dict[str, PerQueryMetrics]
    """`trends`, `challenger`, `final` and the reference models' names → metrics"""
    overlap: float
    """of the lists of the final model and the challenger's holdout model"""
    ranks: PartRanks
    """of the final model and the challenger's holdout model"""
    lists: ListChoices | None
    """on the served lists of the holdout; None without any"""

    def compare(self, name: str, margin: float, subject: str = "challenger") -> Comparison:
        """Compare `subject` with another model."""
        values, other = (holdout.pooled(self.measured[one], gate.METRIC) for one in (subject, name))
        return gate.compare(values, other, self.asked.questions, name, margin)

    def final_check(self, margin: float) -> FinalCheck:
        """Compare the final model with its holdout model."""
        comparison = self.compare("challenger", margin, "final")
        return holdout.final_check(comparison, self.overlap, self.ranks)


def evaluate(
    gate_run: GateRun, settings: TrainingSettings, progress: Callable[[str], None]
) -> Evaluation:
    """Ask the challenger and the reference models, check the final model, and decide."""
    references = gate_run.references(settings)
    known = [reference for reference in references if reference.problem is None]
    from_ms = max([gate_run.run.cut_ms, *(reference.cut_ms for reference in known)])
    split = holdout.split_at(gate_run.log, from_ms, settings.min_interactions)
    asked = holdout.Holdout.of(split, settings.holdout_queries, settings.seed, gate_run.known)
    progress(f"evaluating {len(asked.questions):,} queries on the newest interactions")
    answered = ask(asked, gate_run.folder, known)
    comparisons = [
        gate.not_compared(reference.name, reference.problem, reference.margin)
        if reference.problem is not None
        else answered.compare(reference.name, reference.margin)
        for reference in references
    ]
    comparisons.append(answered.compare("trends", settings.gate_margin))
    final = answered.final_check(settings.gate_margin)
    decision = gate.decide(comparisons, final.problem)
    passed = decision.verdict == "passed" or (
        decision.verdict == "undecided"
        and (settings.when_undecided == "promote" or gate_run.gated_champion is None)
    )
    return Evaluation(
        questions=len(asked.questions),
        from_ms=from_ms,
        metrics=means(answered.measured["challenger"]),
        against={
            name: means(answered.measured[name])
            for name in ["trends", *(reference.name for reference in known)]
        },
        champion=gate_run.champion,
        passed=passed,
        verdict=decision.verdict,
        reason="; ".join([decision.reason, *_notes(gate_run, from_ms, decision.verdict, passed)]),
        comparisons=comparisons,
        detectable_loss=comparisons[0].detectable_loss,
        own_share=asked.questions.own_share,
        final=final,
        lists=answered.lists,
        new_anchor=_becomes_anchor(gate_run, known, comparisons),
    )


def ask(asked: holdout.Holdout, folder: Path, references: list[ReferenceModel]) -> HoldoutMetrics:
    """Ask the holdout and final models of the challenger in `folder`, and the references."""
    folders = {"challenger": folder / "holdout_model", "final": folder / "model"}
    folders |= {reference.name: reference.folder for reference in references}
    ranked = {name: ranked_model(folder) for name, folder in folders.items()}
    ranked["final"] = replace(ranked["final"], cut_ms=math.inf)
    with threadpool_limits(1, "blas"):  # small matrices: more threads cost more than they save
        answers = holdout.ask(asked, ranked)
        ranks = holdout.part_ranks(asked, ranked["final"], ranked["challenger"])
        unseen = {name: one for name, one in ranked.items() if name != "final"}
        split = asked.split
        lists = list_choices(split.log, split.cut_ms, unseen, asked.known)
    return HoldoutMetrics(
        asked,
        {name: holdout.metrics(answers, name) for name in ["trends", *ranked]},
        holdout.overlap(answers, "challenger", "final"),
        ranks,
        lists,
    )


def ranked_model(folder: Path) -> RankedModel:
    """The holdout model of a verified artifact with its ranker, or with the fallback ranker."""
    model, manifest = models.load(folder)
    return RankedModel(model, load_ranker(folder), manifest.cut_ms or math.inf)


def _becomes_anchor(
    gate_run: GateRun, known: list[ReferenceModel], comparisons: list[Comparison]
) -> bool:
    """Whether the challenger is shown to be better than the anchor, or there is none to ask."""
    anchor = Anchor.read(gate_run.home)
    name = next(
        (reference.name for reference in known if anchor and reference.version == anchor.version),
        None,
    )
    return name is None or any(c.better for c in comparisons if c.other == name)


def _notes(gate_run: GateRun, from_ms: int, verdict: gate.Verdict, passed: bool) -> list[str]:
    notes = []
    if gate_run.champion != gate_run.gated_champion:
        notes.append(f"champion not compared: {gate_run.champion} is a bootstrap model")
    if from_ms > gate_run.run.cut_ms:
        day = datetime.fromtimestamp(from_ms / 1000, UTC).isoformat(" ", "seconds")
        notes.append(f"questions from {day} on, the cut of a compared holdout model")
    if verdict == "undecided":
        notes.append(f"too few questions: {'promoted' if passed else 'the champion is kept'}")
    return notes


def means(measured: PerQueryMetrics) -> dict[str, float]:
    """protocol.metric → mean over the queries."""
    return {
        f"{protocol}.{name}": round(float(values.mean()), 5)
        for protocol, by_name in measured.items()
        for name, values in by_name.items()
        if len(values)
    }

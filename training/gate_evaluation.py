"""Evaluate a challenger for the release gate: which models are asked, about what, and the verdict.

reads   artifact  <home>/challengers/<version>/model, holdout_model
        artifact  <home>/holdout_models/<version>   of the champion and of the anchor

Every model is asked through its holdout model, about interactions after the latest of their cuts.
A model without a learned ranker is scored by the fallback ranker, as in serving.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from threadpoolctl import threadpool_limits

from afterclick import model as models
from afterclick.artifact import read_manifest, verify
from afterclick.errors import BadArtifact
from afterclick.ranking import FormulaRanker
from afterclick.settings import TrainingSettings
from training import gate
from training.challenger import BOOTSTRAP, HOLDOUT_MODELS, Evaluation, RunMetadata, ranker_of
from training.config import ReplayConfig
from training.evaluation import holdout
from training.evaluation.holdout import Contestant, FinalCheck, PartRanks, PerQueryMetrics
from training.event_log import EventLog
from training.gate import Comparison
from training.workspace import Anchor


@dataclass(frozen=True)
class Opponent:
    """A published model that a challenger is compared with, or the reason why it cannot be."""

    name: str
    version: str
    folder: Path
    margin: float
    cut_ms: int = 0
    """event time from which its holdout model has seen nothing"""
    problem: str | None = None

    @classmethod
    def of(cls, name: str, version: str, home: Path, margin: float, newest_ms: int) -> Opponent:
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
class Trial:
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

    def opponents(self, settings: TrainingSettings) -> list[Opponent]:
        """Champion and anchor; only the champion if they are the same model."""
        anchor = Anchor.read(self.home)
        found = [("champion", self.gated_champion, settings.gate_margin)]
        if anchor is not None and anchor.version != self.gated_champion:
            found.append(("anchor", anchor.version, settings.anchor_margin))
        newest_ms = int(self.log.time_ms[-1])
        return [
            Opponent.of(name, version, self.home, margin, newest_ms)
            for name, version, margin in found
            if version is not None
        ]


@dataclass(frozen=True)
class Answered:
    """The metrics of every contestant on the questions of the holdout."""

    asked: holdout.Holdout
    measured: dict[str, PerQueryMetrics]
    """`trends`, `challenger`, `final` and the opponents' names → metrics"""
    overlap: float
    """of the lists of the final model and the challenger's holdout model"""
    ranks: PartRanks
    """of the final model and the challenger's holdout model"""

    def compare(self, name: str, margin: float, subject: str = "challenger") -> Comparison:
        """Compare `subject` with another contestant."""
        values, other = (holdout.pooled(self.measured[one], gate.METRIC) for one in (subject, name))
        return gate.compare(values, other, self.asked.questions, name, margin)

    def final_check(self, margin: float) -> FinalCheck:
        """Compare the final model with its holdout model."""
        comparison = self.compare("challenger", margin, "final")
        return holdout.final_check(comparison, self.overlap, self.ranks)


def evaluate(
    trial: Trial, settings: TrainingSettings, progress: Callable[[str], None]
) -> Evaluation:
    """Ask the challenger and its opponents, check the final model, and decide."""
    opponents = trial.opponents(settings)
    known = [opponent for opponent in opponents if opponent.problem is None]
    from_ms = max([trial.run.cut_ms, *(opponent.cut_ms for opponent in known)])
    split = holdout.split_at(trial.log, from_ms, settings.min_interactions)
    asked = holdout.Holdout.of(split, settings.holdout_queries, settings.seed, trial.known)
    progress(f"evaluating {len(asked.questions):,} queries on the newest interactions")
    answered = ask(asked, trial.folder, known)
    comparisons = [
        gate.not_compared(o.name, o.problem, o.margin)
        if o.problem is not None
        else answered.compare(o.name, o.margin)
        for o in opponents
    ]
    comparisons.append(answered.compare("trends", settings.gate_margin))
    final = answered.final_check(settings.gate_margin)
    decision = gate.decide(comparisons, final.problem)
    passed = decision.verdict == "passed" or (
        decision.verdict == "undecided"
        and (settings.when_undecided == "promote" or trial.gated_champion is None)
    )
    return Evaluation(
        questions=len(asked.questions),
        from_ms=from_ms,
        metrics=means(answered.measured["challenger"]),
        against={o: means(answered.measured[o]) for o in ["trends", *(o.name for o in known)]},
        champion=trial.champion,
        passed=passed,
        verdict=decision.verdict,
        reason="; ".join([decision.reason, *_notes(trial, from_ms, decision.verdict, passed)]),
        comparisons=comparisons,
        detectable_loss=comparisons[0].detectable_loss,
        own_share=asked.questions.own_share,
        final=final,
        new_anchor=_becomes_anchor(trial, known, comparisons),
    )


def ask(asked: holdout.Holdout, folder: Path, opponents: list[Opponent]) -> Answered:
    """Ask the challenger in `folder` (its holdout model and its final model) and the opponents."""
    folders = {"challenger": folder / "holdout_model", "final": folder / "model"}
    folders |= {opponent.name: opponent.folder for opponent in opponents}
    contestants = {name: contestant(folder) for name, folder in folders.items()}
    with threadpool_limits(1, "blas"):  # small matrices: more threads cost more than they save
        answers = holdout.ask(asked, contestants)
        ranks = holdout.part_ranks(asked, contestants["final"], contestants["challenger"])
    return Answered(
        asked,
        {name: holdout.metrics(answers, name) for name in ["trends", *contestants]},
        holdout.overlap(answers, "challenger", "final"),
        ranks,
    )


def contestant(folder: Path) -> Contestant:
    """The model of a verified artifact with its ranker, or with the fallback ranker."""
    model, _ = models.load(folder)
    return Contestant(model, ranker_of(folder) or FormulaRanker())


def _becomes_anchor(trial: Trial, known: list[Opponent], comparisons: list[Comparison]) -> bool:
    """Whether the challenger is shown to be better than the anchor, or there is none to ask."""
    anchor = Anchor.read(trial.home)
    name = next((o.name for o in known if anchor and o.version == anchor.version), None)
    return name is None or any(c.better for c in comparisons if c.other == name)


def _notes(trial: Trial, from_ms: int, verdict: gate.Verdict, passed: bool) -> list[str]:
    notes = []
    if trial.champion != trial.gated_champion:
        notes.append(f"champion not compared: {trial.champion} is a bootstrap model")
    if from_ms > trial.run.cut_ms:
        day = datetime.fromtimestamp(from_ms / 1000, UTC).isoformat(" ", "seconds")
        notes.append(f"questions from {day} on, the cut of an opponent's holdout model")
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

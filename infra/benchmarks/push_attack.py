"""`afterclick bench poison`: fake accounts push an item; what it gains, and what the guards cost
others.

reads  a dataset (training/evaluation/reviews.py); without one, a shop generated for the occasion
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from afterclick.settings import Settings
from infra.benchmarks import attacked_lists, attacked_trends
from infra.benchmarks.attacked_lists import AttackPlan
from infra.benchmarks.harness import Benchmark, Figures
from ingest.generate import generate_shop
from training.config import ModelConfig, TowerConfig
from training.evaluation.time_split import split_of
from training.fit import trainer


@dataclass(frozen=True)
class PushAttackBenchmark(Benchmark):
    dataset: Path | None = None
    cut: str | None = None
    """First day after the attack; None: as in an evaluation."""
    model: bool = True
    """Also fit a model and attack the personal lists: minutes, not seconds."""
    plan: AttackPlan = field(default_factory=AttackPlan)

    def run(self, settings: Settings) -> Figures:
        """Fit on the past, attack, measure; a row per situation."""
        with _dataset(self.dataset) as dataset:
            split, data = split_of(settings, dataset, self.cut)
            figures: Figures = {"trending": attacked_trends.run(split, self.plan)}
            if self.model:
                config = _small(ModelConfig.of(settings.training, "fast", "implicit"))
                with trainer(settings, data.texts, config) as models:
                    figures["lists"] = attacked_lists.run(split, models, self.plan)
        return {"dataset": "generated" if self.dataset is None else "given", **figures}


def _small(config: ModelConfig) -> ModelConfig:
    """One past cut and one epoch of the towers: enough to see the effect of an attack."""
    ranker = replace(config.ranker, cuts=1, queries=4000)
    return replace(config, towers=TowerConfig(epochs=1), ranker=ranker)


@contextmanager
def _dataset(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with TemporaryDirectory(prefix="afterclick-poison-") as folder:
        generate_shop(Path(folder))
        yield Path(folder)

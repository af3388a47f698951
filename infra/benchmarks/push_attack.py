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
from infra.benchmarks import attacked_lists as poison
from infra.benchmarks import attacked_trends as poison_trends
from infra.benchmarks.attacked_lists import Request
from infra.benchmarks.harness import Benchmark, Figures
from ingest.generate import generate_shop
from training import implicit_als
from training.evaluation.build import Recipe
from training.evaluation.command import recipe, split_of
from training.ranker import RankerConfig
from training.tower_config import TowerConfig


@dataclass(frozen=True)
class PushAttackBenchmark(Benchmark):
    dataset: Path | None = None
    cut: str | None = None
    """First day after the attack; None: as in an evaluation."""
    model: bool = True
    """Also fit a model and attack the personal lists: minutes, not seconds."""
    request: Request = field(default_factory=Request)

    def run(self, settings: Settings) -> Figures:
        """Fit on the past, attack, measure; a row per situation."""
        with _dataset(self.dataset) as dataset:
            split, data = split_of(settings, dataset, self.cut)
            figures: Figures = {"trending": poison_trends.run(split, self.request)}
            if self.model:
                how = _small(recipe(settings, implicit_als.fit))
                figures["lists"] = poison.run(split, data, how, self.request)
        return {"dataset": "generated" if self.dataset is None else "given", **figures}


def _small(how: Recipe) -> Recipe:
    """One past cut and one pass of the towers: enough to see what an attack does."""
    ranker = RankerConfig(cuts=1, questions=4000, least=how.least, seed=how.ranker.seed)
    return replace(how, towers=TowerConfig(epochs=1), ranker=ranker)


@contextmanager
def _dataset(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with TemporaryDirectory(prefix="afterclick-poison-") as folder:
        generate_shop(Path(folder))
        yield Path(folder)

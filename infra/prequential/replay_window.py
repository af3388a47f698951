"""What is replayed: the window of a log that is asked about, and the models of its walk.

reads   a dataset (training/evaluation/reviews.py), or parquet <home>/etl/<version>
        artifact  <home>/artifacts/<version>, if the published models are asked for
writes  artifacts in a temporary folder
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from afterclick.errors import BadInput
from afterclick.settings import Settings
from afterclick.trends import DAY_MS
from infra.prequential.past_models import (
    Models,
    PublishedModels,
    RecipeModels,
    Retrain,
    TrainedModel,
)
from infra.prequential.serving_replay import Arm, ReplayedShop, ServingReplay, Walk
from training.config import ModelConfig
from training.evaluation.time_split import cut_of, day_of, interactions_of
from training.event_log import EventLog
from training.fit import trainer
from training.interactions import TooFewInteractions
from training.protocols import EvaluationSplit, Queries, every_choice, queries, sample

DEFAULT_DAYS = 60
_SAMPLE_SEED = 42
_DAY = int(DAY_MS)
Progress = Callable[[str], None]


class Ask(StrEnum):
    """Which events are asked about."""

    EVERY = "every"
    """Each positive event on an item that is new to the user; events of a user with equal times
    are one query, and one of them is known (`training.protocols.every_choice`)."""
    LIVE = "live"
    """The queries `live` of `afterclick evaluate`."""


@dataclass(frozen=True)
class ReplayRequest:
    """Options of the command line that both commands share."""

    dataset: Path | None = None
    from_day: str | None = None
    to_day: str | None = None
    queries: int | None = 10_000
    """At most; None: all."""
    preset: str | None = "fast"
    engine: str | None = None
    ask: Ask = Ask.EVERY


@dataclass(frozen=True)
class Window:
    """The part of a log that is asked about."""

    shop: ReplayedShop
    from_ms: int
    end_ms: int
    """The queries are in [from_ms, end_ms)."""
    asked: Queries
    total: int
    """Queries of which `asked` is a sample."""

    def facts(self) -> dict[str, Any]:
        """The window as JSON types."""
        return {
            "from": day_of(self.from_ms),
            "to": day_of(self.end_ms - 1),
            "queries": len(self.asked),
            "queries_in_window": self.total,
            "users": len(np.unique(self.asked.user)),
        }


def run(
    settings: Settings, request: ReplayRequest, arms: Sequence[Arm], progress: Progress
) -> tuple[Window, Walk]:
    """Read the log, and walk through its window with models of the recipe.

    Raises BadInput for a window without queries or without a past to train on.
    """
    config = ModelConfig.of(settings, request.preset, request.engine)
    progress("reading the interactions")
    window = window_of(settings, request)
    progress(f"asking for {len(window.asked):,} of {window.total:,} lists, {len(arms)} times each")
    began = time.perf_counter()
    published = any(arm.retrain is Retrain.PUBLISHED for arm in arms)
    with _models(settings, config, window, published) as models:
        replay = ServingReplay(window.shop, _Reported(models, progress), window.from_ms)
        try:
            walk = replay.walk(window.asked, arms)
        except TooFewInteractions as error:
            raise BadInput(
                f"--from {day_of(window.from_ms)}: {error}; choose a later day"
            ) from None
    progress(f"walked in {time.perf_counter() - began:.0f} s")
    return window, walk


@contextmanager
def _models(
    settings: Settings, config: ModelConfig, window: Window, published: bool
) -> Iterator[Models]:
    if published:
        yield PublishedModels(settings.artifacts)
        return
    with (
        tempfile.TemporaryDirectory(prefix="afterclick-replay-") as folder,
        trainer(settings, window.shop.texts, config) as models,
    ):
        yield RecipeModels(models, window.shop.log, Path(folder))


class _Reported:
    """Models with a line of progress for each."""

    def __init__(self, models: Models, progress: Progress) -> None:
        self._models, self._progress = models, progress
        self._last: TrainedModel | None = None

    def at(self, cut_ms: int) -> TrainedModel:
        began = time.perf_counter()
        model = self._models.at(cut_ms)
        if model is not self._last:
            seconds = time.perf_counter() - began
            self._progress(f"model of {day_of(cut_ms)} in {seconds:.0f} s")
        self._last = model
        return model


def window_of(settings: Settings, request: ReplayRequest) -> Window:
    """The window of a request. Raises BadInput for one without queries, and for invalid days."""
    data = interactions_of(settings, request.dataset)
    log = data.log
    if request.to_day is not None:
        log = log.before(cut_of(log, request.to_day, "--to"))
    from_ms, end_ms = _start(log, request), int(log.time_ms[-1]) + 1
    split = EvaluationSplit(log, from_ms, end_ms)
    found = every_choice(split) if request.ask is Ask.EVERY else queries(split, request.ask)
    if not len(found):
        raise BadInput(
            f"nothing to ask about from {day_of(from_ms)} to {day_of(end_ms - 1)}: no user takes "
            "a new item at a known time; choose an earlier --from or a later --to"
        )
    asked = sample(found, request.queries, _SAMPLE_SEED)
    shop = ReplayedShop.of(settings, log, data.texts)
    return Window(shop, from_ms, end_ms, asked, len(found))


def _start(log: EventLog, request: ReplayRequest) -> int:
    """The first moment of the window."""
    if request.from_day is None:
        return max(int(log.time_ms[-1]) // _DAY * _DAY - DEFAULT_DAYS * _DAY, int(log.time_ms[0]))
    days = request.from_day, request.to_day
    if None not in days and str(days[0]) >= str(days[1]):
        raise BadInput(f"--from {days[0]} is not before --to {days[1]}")
    return cut_of(log, request.from_day, "--from")

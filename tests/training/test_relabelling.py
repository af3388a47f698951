"""Item ids and the order of a file say nothing: neither moves a figure of the evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from afterclick.settings import Settings
from training.config import AlsConfig, ModelConfig, NcfConfig, RankerConfig, TowerConfig
from training.evaluation.time_split import EvaluationOptions, evaluate, split_of
from training.event_log import EventLog
from training.fit import ModelTrainer
from training.models.als import implicit_als
from training.protocols import EvaluationSplit, queries

DAY_S = 86_400
DAYS, USERS, ITEMS = 400, 900, 60
CONFIG = ModelConfig(
    AlsConfig(rank=8, iterations=3),
    towers=TowerConfig(dim=8, epochs=2),
    ncf=NcfConfig(dim=8, epochs=1),
    ranker=RankerConfig(cuts=1, queries=600, trees=20),
)


def visits() -> list[tuple[int, int, int]]:
    """(day, user, item): each user visits a few times and takes three of their kind of items."""
    random = np.random.default_rng(8)
    rows = []
    for user in range(USERS):
        days = np.sort(random.integers(0, DAYS, random.integers(1, 4)))
        items = random.choice(ITEMS // 2, 3 * len(days), replace=False) * 2 + user % 2
        rows += [(int(days[n // 3]), user, int(item)) for n, item in enumerate(items)]
    return rows


def split_of_file(folder: Path, names: list[str]) -> EvaluationSplit:
    """The visits as a file sorted by day, user and item id, as Amazon's is."""
    folder.mkdir()
    rows = sorted((day, f"u{user}", names[item]) for day, user, item in visits())
    lines = (f"{user},{item},{day * DAY_S}\n" for day, user, item in rows)
    (folder / "reviews.csv").write_text("user_id,item_id,timestamp\n" + "".join(lines))
    return split_of(Settings(), folder, None)[0]


def names_in(order: np.ndarray) -> list[str]:
    """An id of each item; ids sort in the order given."""
    names = [""] * ITEMS
    for rank, item in enumerate(order.tolist()):
        names[item] = f"B{rank:05}"
    return names


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> EvaluationSplit:
    folder = tmp_path_factory.mktemp("relabelling")
    return split_of_file(folder / "shop", names_in(np.arange(ITEMS)))


@pytest.mark.slow
def test_random_item_ids_move_no_figure_beyond_noise(
    tmp_path: Path, split: EvaluationSplit
) -> None:
    order = np.random.default_rng(3).permutation(ITEMS)
    relabelled = split_of_file(tmp_path / "shop", names_in(order))
    models = ModelTrainer(CONFIG, {}, implicit_als)
    one, two = (evaluate(each, models, EvaluationOptions()).figures for each in (split, relabelled))
    assert one["split"]["users"] == two["split"]["users"]
    for name, protocols in one["models"].items():
        for protocol in ("live", "live_later_day", "returning", "cold", "trends"):
            first, second = protocols[protocol], two["models"][name][protocol]
            error = np.hypot(_width(first), _width(second)) / 2  # one standard error of each
            assert abs(first["hr@10"] - second["hr@10"]) <= 2 * error + 0.02, (name, protocol)


def _width(measured: dict[str, list[float]]) -> float:
    low, high = measured["hr@10_interval"]
    return high - low


def rising(log: EventLog, split: EvaluationSplit) -> float:
    """Share of the pairs of live event and target in which the target has the larger id."""
    found = queries(replace(split, log=log), "live_same_day")
    live = log.item[found.live[:, 0]]
    there = found.targets >= 0
    return float((found.targets > live[:, None])[there].mean())


def test_a_planted_order_of_ids_within_a_day_is_not_seen(split: EvaluationSplit) -> None:
    """The control keeps the file's order of ties: every target has a larger id than the event."""
    log = split.log
    by_file = np.lexsort((log.item, log.user, log.time_ms))
    assert 0.42 < rising(log, split) < 0.58
    assert rising(log.where(by_file), split) == 1.0

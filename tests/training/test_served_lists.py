"""The ranker learns from served lists: what was chosen against what was shown and not chosen."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afterclick.features import FEATURE_NAMES
from afterclick.user_vectors import context_code
from tests.training.test_ranker import build, companion_shop
from training import ranker, served_lists
from training.config import RankerConfig, ReplayConfig
from training.evaluation.holdout import RankedModel
from training.evaluation.list_choices import list_choices
from training.event_log import EventLog
from training.served_lists import ServedLists, groups, position_decay

DAY = 86_400_000
GOOD, POOR = np.arange(5), np.arange(5, 10)
RELEVANCE = np.where(np.arange(10) < 5, 0.3, 0.2)
DECAY = 0.8


def planted(seed: int, lists: int, explored: float, decay: float = DECAY) -> ServedLists:
    """Lists that put the poor items first, except for a share in random order."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(lists):
        is_random = rng.random() < explored
        order = rng.permutation(10) if is_random else np.concatenate([POOR, GOOD])
        examined = rng.random(10) < np.arange(1, 11) ** -decay
        clicked = examined & (rng.random(10) < RELEVANCE[order])
        made.append((order, clicked, 0.1 if is_random else 1.0))
    made = [one for one in made if one[1].any()]
    n = len(made)
    return ServedLists(
        np.zeros(n, np.int32),
        np.arange(n),
        np.arange(n),
        np.arange(n + 1) * 10,
        np.concatenate([order for order, _, _ in made]).astype(np.int32),
        np.tile(np.arange(10, dtype=np.int32), n),
        np.repeat([p for _, _, p in made], 10).astype(np.float32),
        np.concatenate([clicked for _, clicked, _ in made]).astype(np.float32),
        np.zeros(10 * n, np.int32),
        np.full((n, 2), np.nan),
    )


def preferred(lists: ServedLists, decay: float) -> tuple[float, float]:
    """How often, by weight, a good item is preferred to a poor one, and the other way round."""
    good = poor = 0.0
    for group in groups(lists, decay):
        chosen, others = group.items[0], group.items[1:]
        good += group.weight * (chosen in GOOD) * np.isin(others, POOR).sum()
        poor += group.weight * (chosen in POOR) * np.isin(others, GOOD).sum()
    return good, poor


def test_the_position_bias_is_estimated_where_lists_explored() -> None:
    assert position_decay(planted(1, 4000, 0.5)) == pytest.approx(DECAY, abs=0.1)
    assert position_decay(planted(2, 4000, 0.5, decay=0.0)) < 0.1
    few = planted(3, 20, 0.0)
    assert position_decay(few) == served_lists.DEFAULT_DECAY


def test_a_planted_position_bias_is_corrected() -> None:
    lists = planted(4, 4000, 0.3)
    good, poor = preferred(lists, position_decay(lists))
    assert good > 1.2 * poor
    # control: as if every rank was examined, the poor items in the first ranks win
    good, poor = preferred(lists, 0.0)
    assert poor > good


def test_groups_hold_the_click_the_ignored_and_the_skipped_items() -> None:
    lists = ServedLists(
        np.zeros(3, np.int32),
        np.arange(3),
        np.arange(3),
        np.array([0, 4, 6, 9]),
        np.arange(9, dtype=np.int32),
        np.array([0, 1, 2, 40_000, 0, 1, 0, 1, 2], np.int32),
        np.ones(9, np.float32),
        np.array([0, 3, -1, 0, 1, 1, -1, 0, 0], np.float32),
        np.zeros(9, np.int32),
        np.full((3, 2), np.nan),
    )
    found = [(g.list_number, g.items.tolist(), g.grades.tolist()) for g in groups(lists, 0.5)]
    assert found == [
        (0, [1, 0, 2], [3.0, 0.0, 0.0]),  # the last one was not examined
        (2, [6, 7, 8], [0.0, pytest.approx(0.1), pytest.approx(0.1)]),  # a skip alone
    ]  # of a list in which everything was clicked, nothing is learned
    assert [g.weight for g in groups(lists, 0.5)] == [pytest.approx(2**0.5), 1.0]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / name).mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / name / "part-0.parquet")


def test_lists_and_reactions_are_joined(tmp_path: Path) -> None:
    pages = {"a": "home"}
    shown = [
        {
            "impression_id": name,
            "item_id": f"i{n}",
            "position": n,
            "propensity": 1.0,
            "page": pages.get(name),
        }
        for name in ("b", "a", "unknown")
        for n in range(3)
    ]
    columns = ("impression_id", "user_index", "item_id", "time_ms", "weight")
    reactions = [
        ("a", 7, "i1", 50, 1.0),
        ("a", 7, "i1", 60, 3.0),
        ("a", 7, "i2", 55, -1.0),
        ("a", 8, "i0", 51, 2.0),  # of another user
        ("b", 9, "i0", 40, -1.0),
    ]
    write(tmp_path, "shown", shown)
    write(tmp_path, "reactions", [dict(zip(columns, row, strict=True)) for row in reactions])
    lists, missing = served_lists.load(tmp_path, np.array(["i1", "i0"]))
    assert missing == ["i2"]
    assert lists.user.tolist() == [9, 7]
    assert (lists.time_ms.tolist(), lists.last_ms.tolist()) == ([40, 50], [40, 60])
    assert lists.item.tolist() == [1, 0, 2] * 2
    home = [context_code("home"), np.nan]
    assert np.array_equal(lists.context, [[np.nan] * 2, home], equal_nan=True)
    assert lists.grade.tolist() == [-1, 0, 0, 0, 3, -1]
    assert lists.before(60).user.tolist() == [9]
    assert lists.between(45, 60).item.tolist() == [1, 0, 2]
    empty, _ = served_lists.load(tmp_path / "shown", np.array(["i1"]))
    assert not len(empty)


@pytest.fixture(scope="module")
def log() -> EventLog:
    """A shop in whose lists the users always chose the item with the highest number."""
    log = EventLog.of(companion_shop())
    rng = np.random.default_rng(3)
    end = int(log.time_ms[-1])
    n = 300
    items = np.array([np.sort(rng.choice(len(log.item_ids), 6, replace=False)) for _ in range(n)])
    clicked = np.tile(np.array([0, 0, 0, 0, 0, 1], np.float32), n)
    times = np.sort(rng.integers(end - 40 * DAY, end, n))
    users = rng.integers(0, len(log.user_ids), n).astype(np.int32)
    lists = ServedLists(
        users,
        times,
        times,
        np.arange(n + 1) * 6,
        items.ravel().astype(np.int32),
        np.tile(np.arange(6, dtype=np.int32), n),
        np.ones(6 * n, np.float32),
        clicked,
        np.zeros(6 * n, np.int32),
        np.full((n, 2), np.nan),
    )
    return replace(log, lists=lists)


CONFIG = RankerConfig(cuts=1, horizon_days=60, queries=400, negatives=20, trees=20, min_rows=20)


def test_served_lists_join_the_examples_of_the_ranker(log: EventLog) -> None:
    found = ranker.collect(log, build, CONFIG, ReplayConfig())
    assert len(found.list_weights) > 100
    sizes = found.groups[found.targeted :]
    assert Counter(sizes.tolist()) == {6: len(sizes)}
    last = found.grades[-int(sizes.sum()) :].reshape(-1, 6)
    assert (last[:, 0] == 1).all()
    assert (last[:, 1:] == 0).all()
    learned = ranker.learn(found, CONFIG)
    assert learned.list_groups == len(sizes)


def test_the_page_of_a_list_is_a_feature_and_tells_no_list_from_a_query(log: EventLog) -> None:
    home, basket = context_code("home"), context_code("basket")
    context = np.full((len(log.lists), 2), np.nan)
    context[:, 0] = np.where(np.arange(len(log.lists)) % 2, home, basket)
    log = replace(log, lists=replace(log.lists, context=context))
    found = ranker.collect(log, build, CONFIG, ReplayConfig())
    page = found.rows[:, FEATURE_NAMES.index("page")]
    of_lists = int(found.groups[found.targeted :].sum())
    assert set(page[-of_lists:]) == {home, basket}
    of_targets = page[:-of_lists]
    assert set(of_targets[~np.isnan(of_targets)]) == {home, basket}
    assert 0.3 < np.isnan(of_targets).mean() < 0.7


def test_without_lists_or_with_weight_0_the_examples_are_the_same(log: EventLog) -> None:
    plain = replace(log, lists=ServedLists.empty())
    expected = ranker.collect(plain, build, CONFIG, ReplayConfig())
    for found in (
        ranker.collect(log, build, replace(CONFIG, list_weight=0.0), ReplayConfig()),
        ranker.collect(log, build, CONFIG, ReplayConfig()).split()[0],
    ):
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.groups, expected.groups)
        assert not len(found.list_weights)


def test_models_are_judged_by_the_choices_in_the_newest_lists(log: EventLog) -> None:
    cut_ms = int(log.lists.time_ms[200])
    past = log.before(cut_ms)
    models = {
        name: RankedModel(
            build(past),
            ranker.learn(
                ranker.collect(past, build, replace(CONFIG, list_weight=weight), ReplayConfig()),
                CONFIG,
            ).trees,
        )
        for name, weight in (("learner", 1.0), ("control", 0.0))
    }
    found = list_choices(log, cut_ms, models, ReplayConfig())
    assert found is not None
    assert found.lists == found.choices == 100
    # the item chosen in a list has the highest number, and popularity grows with it
    assert found.auc["learner"] > found.auc["control"] + 0.05
    assert found.ndcg["learner"] > found.ndcg["control"]
    plain = replace(log, lists=ServedLists.empty())
    assert list_choices(plain, cut_ms, models, ReplayConfig()) is None


def test_lists_with_a_reaction_after_a_cut_are_unknown_before_it(log: EventLog) -> None:
    cut_ms = int(log.lists.last_ms[100])
    assert len(log.before(cut_ms).lists) == np.count_nonzero(log.lists.last_ms < cut_ms)

"""The histories that predict a target: what came before it, and a random part of its own set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from afterclick.sequence_encoder import AGES_DAYS
from tests.training import shop
from training.interactions import Interactions
from training.models.history_examples import HistoryBatch, HistoryExamples

DAY = 86_400_000


def drawn(rows: Interactions, times: int = 1) -> HistoryBatch:
    """Every example of the rows, `times` over."""
    examples = HistoryExamples.of(rows)
    return examples.batch(np.tile(np.arange(len(examples)), times), np.random.default_rng(3))


def test_an_example_contains_the_earlier_events_newest_first() -> None:
    rows = shop.interactions([(0, 0), (1, 5), (0, 1), (0, 2)], users=2, items=6, days=2)
    batch = drawn(rows)
    assert batch.target.tolist() == [1, 2]
    assert batch.history[:, :3].tolist() == [[0, -1, -1], [1, 0, -1]]
    # two interactions of others lie between: four days, and then two and six
    assert batch.age[0, 0] == np.searchsorted(AGES_DAYS, 4)
    assert batch.age[1, :2].tolist() == np.searchsorted(AGES_DAYS, [2, 6]).tolist()


def test_a_target_sees_a_random_part_of_its_set_and_all_that_came_before() -> None:
    pairs = [(0, item) for item in range(6)]
    days = np.array([0, 1, 1, 1, 1, 2])
    rows = replace(shop.interactions(pairs, 1, 6), time_ms=days * DAY)
    batch = drawn(rows, times=3000)
    of_set = (batch.target >= 1) & (batch.target <= 4)
    sizes = np.zeros(4, int)
    for target, history, age in zip(
        batch.target[of_set], batch.history[of_set], batch.age[of_set], strict=True
    ):
        seen = history[history >= 0].tolist()
        assert seen[-1] == 0  # before the set: always the last
        assert target not in seen
        assert 5 not in seen  # after the set
        assert len(set(seen)) == len(seen)
        assert age[: len(seen) - 1].tolist() == [0] * (len(seen) - 1)
        sizes[len(seen) - 1] += 1
    np.testing.assert_allclose(sizes / sizes.sum(), 0.25, atol=0.02)
    later = batch.target == 5
    assert (np.sort(batch.history[later][:, :5], axis=1) == [0, 1, 2, 3, 4]).all()
    assert set(batch.target.tolist()) == {1, 2, 3, 4, 5}  # the first has nothing before it


def test_the_first_set_of_a_user_gives_examples_with_at_least_one_other_item() -> None:
    rows = replace(shop.interactions([(0, 0), (0, 1), (0, 2)], 1, 3), time_ms=np.zeros(3, int))
    batch = drawn(rows, times=200)
    assert sorted(set(batch.target.tolist())) == [0, 1, 2]
    assert (batch.history[:, 0] >= 0).all()
    assert (batch.history[:, 2] == -1).all()


def baskets(apart_ms: int, relabelled: bool = False) -> Interactions:
    """Users with a set of three of 60 items, in the order of item ids, `apart_ms` apart."""
    users, random = 1500, np.random.default_rng(8)
    chosen = np.sort(np.array([random.choice(60, 3, replace=False) for _ in range(users)]), axis=1)
    pairs = [(user, int(item)) for user, items in enumerate(chosen) for item in items]
    rows = shop.interactions(pairs, users, 60)
    rows = replace(rows, time_ms=np.tile(np.arange(3) * apart_ms, users))
    if not relabelled:
        return rows
    index = random.permutation(60).astype(np.int32)
    ids = np.array([f"other-{number}" for number in random.permutation(60)])
    return replace(rows, item=index[rows.item], item_ids=ids)


def share_after_a_smaller_item(rows: Interactions) -> float:
    """Share of the examples whose target has a larger index than the newest item before it."""
    batch = drawn(rows, times=3)
    return float((batch.target > batch.history[:, 0]).mean())


def test_the_order_within_a_set_is_no_order_of_events() -> None:
    assert share_after_a_smaller_item(baskets(0)) == pytest.approx(0.5, abs=0.02)
    assert share_after_a_smaller_item(baskets(0, relabelled=True)) == pytest.approx(0.5, abs=0.02)
    assert share_after_a_smaller_item(baskets(1)) == 1.0  # the control: an order of times


def test_a_users_other_items_are_no_negatives() -> None:
    rows = shop.interactions([(0, 0), (0, 1), (1, 2), (0, 3), (1, 4)], users=2, items=6)
    examples = HistoryExamples.of(rows)
    targets = examples.item[examples.targets].tolist()
    owned = examples.owned(np.arange(len(examples)), np.array([5, 0, 4, 0, 3]))
    mine, other = [False, True, False, True, True], [False, False, True, False, False]
    assert dict(zip(targets, owned.tolist(), strict=True)) == {1: mine, 3: mine, 4: other}

"""The two towers learn which items belong to which users, and NumPy computes the torch model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from afterclick.features import FEATURE_NAMES, features
from afterclick.model import AGES_DAYS, UNKNOWN_BIAS, TowerArrays
from afterclick.retrieval import SOURCES, CandidateLimits, Searches, candidate_items, exact_search
from afterclick.user_vectors import UserState, UserVectors
from serving.state.ann_search import index_search
from tests.scoring.examples import a_model, a_view
from tests.training import shop
from training import ann_index
from training.config import TowerConfig
from training.interactions import Interactions
from training.models import two_tower
from training.models.two_tower import TowerBatch, TowerExamples

DAY = 86_400_000
CONFIG = TowerConfig(
    dim=16, epochs=60, batch=128, uniform=32, rate=0.01, min_interactions=2, threads=1, seed=1
)


@cache
def board() -> TowerArrays:
    """Towers learned from the checkerboard."""
    return fitted(shop.checkerboard()[0])


def fitted(rows: Interactions) -> TowerArrays:
    arrays = two_tower.fit(rows, CONFIG)
    assert arrays is not None
    return arrays


def test_numpy_computes_the_vectors_that_torch_has_learned() -> None:
    rows, _ = shop.checkerboard()
    examples = TowerExamples.of(rows)
    towers = two_tower.train(examples, 40, CONFIG)
    arrays = towers.export()
    batch = examples.batch(np.arange(100, 130), np.random.default_rng(1))
    history = torch.from_numpy(np.where(batch.history >= 0, batch.history, 40).astype(np.int64))
    with torch.no_grad():
        users = towers.users(
            history, torch.from_numpy(batch.weight), torch.from_numpy(batch.age.astype(np.int64))
        )
        logits = users @ towers.items(torch.arange(40)).T / CONFIG.temperature + towers.bias
    middle = np.r_[AGES_DAYS[:1] / 2, (AGES_DAYS[1:] + AGES_DAYS[:-1]) / 2, 2 * AGES_DAYS[-1:]]
    for row in range(30):
        there = batch.history[row] >= 0
        mine, age = batch.history[row][there], batch.age[row][there]
        now = 1e12
        vector = arrays.user(mine, batch.weight[row][there], now - middle[age] * DAY, now)
        assert vector is not None
        np.testing.assert_allclose(vector[:-1].tolist(), users[row].tolist(), atol=1e-5)
        np.testing.assert_allclose(
            arrays.logits(vector, np.arange(40, dtype=np.int32)), logits[row].numpy(), atol=1e-4
        )


def drawn(rows: Interactions, times: int = 1) -> TowerBatch:
    """Every example of the rows, `times` over."""
    examples = TowerExamples.of(rows)
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


def learned_order(rows: Interactions) -> float:
    """How much higher, on average, items of larger index score after an item in the middle."""
    arrays = two_tower.fit(rows, replace(CONFIG, epochs=10))
    assert arrays is not None
    higher = []
    for item in range(20, 40):
        vector = arrays.user(np.array([item], np.int32), np.ones(1, np.float32), np.zeros(1), 0.0)
        assert vector is not None
        logits = arrays.targets @ vector
        higher.append(logits[item + 1 :].mean() - logits[:item].mean())
    return float(np.mean(higher))


def test_towers_learn_nothing_from_the_order_of_item_ids() -> None:
    assert learned_order(baskets(1)) > 2.0  # the control: it is in the times
    assert abs(learned_order(baskets(0))) < 0.5
    assert abs(learned_order(baskets(0, relabelled=True))) < 0.5


def test_a_users_other_items_are_no_negatives() -> None:
    rows = shop.interactions([(0, 0), (0, 1), (1, 2), (0, 3), (1, 4)], users=2, items=6)
    examples = TowerExamples.of(rows)
    targets = examples.item[examples.targets].tolist()
    owned = examples.owned(np.arange(len(examples)), np.array([5, 0, 4, 0, 3]))
    mine, other = [False, True, False, True, True], [False, False, True, False, False]
    assert dict(zip(targets, owned.tolist(), strict=True)) == {1: mine, 3: mine, 4: other}


def test_an_item_with_too_few_interactions_is_unknown_and_never_near() -> None:
    rows, _ = shop.checkerboard()
    rows = rows.also(["rare"])
    arrays = fitted(rows)
    assert arrays.targets[40, -1] == UNKNOWN_BIAS
    assert not arrays.history[40].any()
    vector = arrays.user(np.array([40, 0], np.int32), np.ones(2, np.float32), np.zeros(2), 0.0)
    assert vector is not None
    assert np.isnan(arrays.logits(vector, np.array([40]))).all()
    assert (arrays.targets @ vector).argmin() == 40


def test_without_pairs_there_are_no_towers() -> None:
    assert two_tower.fit(shop.interactions([(0, 0), (1, 1)], 2, 2), CONFIG) is None


@pytest.mark.parametrize("epochs", range(1, 13))
def test_few_examples_are_enough_for_any_number_of_steps(epochs: int) -> None:
    rows, _ = shop.checkerboard()
    assert two_tower.fit(rows, replace(CONFIG, epochs=epochs, batch=len(rows) + 1)) is not None


def test_the_towers_are_features_of_every_candidate() -> None:
    random = np.random.default_rng(2)
    arrays = TowerArrays(
        random.normal(size=(6, 3)).astype(np.float32),
        random.normal(size=(6, 4)).astype(np.float32),
        np.ones(len(AGES_DAYS) + 1, np.float32),
    )
    model = a_model(towers=arrays)
    state = UserState(
        np.array([2, 4], np.int32),
        np.ones(2, np.float32),
        np.zeros(2),
        np.array([2, 4], np.int32),
        0.0,
    )
    asked = np.array([0, 1, 7], np.int32)
    rows = features(model, UserVectors.of(model, state), a_view(8), asked)
    whole, newest = (arrays.history[[2, 4]].sum(0), arrays.history[2])
    for name, vector in (("tower", whole), ("tower_last", newest)):
        expected = arrays.targets[[0, 1]] @ np.append(vector / np.linalg.norm(vector), 1)
        column = rows[:, FEATURE_NAMES.index(name)]
        np.testing.assert_allclose(column[:2], expected, rtol=1e-5)
        assert np.isnan(column[2])  # an item that came after the model


def test_serving_finds_the_nearest_items_by_the_published_index(tmp_path: Path) -> None:
    arrays = board()
    vector = arrays.user(np.array([3, 5], np.int32), np.ones(2, np.float32), np.zeros(2), 0.0)
    assert vector is not None
    exact = np.argsort(-(arrays.targets @ vector))[:10].tolist()
    assert set(index_search(tmp_path / "nowhere", arrays.targets)(vector, 10).tolist()) == set(
        exact
    )
    built, report = ann_index.make(arrays.targets, vector[None])
    ann_index.write(built, tmp_path, ann_index.TOWERS)
    assert report.recall == 1.0
    assert index_search(tmp_path / ann_index.TOWERS, arrays.targets)(vector, 10).tolist() == exact


def test_the_towers_are_a_source_of_candidates() -> None:
    arrays = board()
    model = a_model(40, towers=arrays, factors=None, content=None)
    state = UserState(
        np.array([2, 4], np.int32),
        np.ones(2, np.float32),
        np.zeros(2),
        np.array([2, 4], np.int32),
        0.0,
    )
    found = candidate_items(
        model,
        UserVectors.of(model, state),
        a_view(40).top,
        Searches(tower=exact_search(arrays.targets)),
        CandidateLimits(recent=0, tower=12, trending=0),
    )
    assert {SOURCES[source] for source in found.sources} == {"tower"}
    assert not {2, 4} & set(found.items.tolist())
    assert sum(item % 2 == 0 for item in found.items.tolist()) >= 9  # the user's half of the board

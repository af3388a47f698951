"""The sequence model learns what follows what, and NumPy-free serving computes the torch model."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from afterclick.model import UNKNOWN_BIAS, TowerArrays
from afterclick.retrieval import SOURCES, CandidateLimits, Searches, candidate_items, exact_search
from afterclick.user_vectors import UserState, UserVectors
from serving.state.ann_search import index_search
from tests.scoring.examples import a_model, a_view
from tests.training import shop
from training import ann_index
from training.config import TowerConfig
from training.interactions import Interactions
from training.models import ppmi, sequence_training
from training.models.sequence_batches import Sequences
from training.models.sequence_training import ItemInputs, Training
from training.models.stopping import EarlyStopping, TimeBudget

DAY = 86_400_000
CONFIG = TowerConfig(
    dim=16,
    dropout=0.1,
    epochs=12,
    rate=0.01,
    tokens=64,
    uniform=16,
    min_interactions=2,
    validation=0,
    device="cpu",
    seed=1,
)


def fitted(rows: Interactions, config: TowerConfig = CONFIG, **inputs: np.ndarray) -> TowerArrays:
    arrays = sequence_training.fit(rows, config, ItemInputs(**inputs))
    assert arrays is not None
    return arrays


@cache
def board() -> TowerArrays:
    """A model learned from the checkerboard."""
    return fitted(shop.checkerboard()[0])


def user_of(arrays: TowerArrays, items: list[int]) -> np.ndarray:
    """The vector after items, newest first, a day each."""
    times = -np.arange(len(items), dtype=np.float64) * DAY
    found = arrays.user(np.array(items, np.int32), np.ones(len(items), np.float32), times, DAY)
    assert found is not None
    return found


def chains(users: int = 300, relabelled: bool = False) -> Interactions:
    """Users who take five of 30 items in the order of a circle, a day each."""
    random = np.random.default_rng(8)
    names = random.permutation(30) if relabelled else np.arange(30)
    starts = random.integers(0, 30, users)
    pairs = [(u, int(names[(s + k) % 30])) for u, s in enumerate(starts) for k in range(5)]
    rows = shop.interactions(pairs, users, 30)
    return replace(rows, time_ms=np.tile(np.arange(5) * DAY, users))


def test_serving_computes_the_logits_that_torch_has_learned() -> None:
    rows = chains()
    rows = replace(rows, weight=np.tile([0.1, 0.5, 1, 2, 5], 300).astype(np.float32))
    arrays = fitted(rows)
    training = Training(Sequences.of(rows), ItemInputs(), 30, CONFIG)
    training.run()
    ends = np.arange(4, 200, 5)
    expected = training.scores(training.all, ends - 4, ends)
    for row, end in enumerate(ends):
        past = slice(end - 4, end)
        item, weight = training.all.item[past][::-1], training.all.weight[past][::-1]
        time_ms = training.all.time_ms[past][::-1].astype(np.float64)
        user = arrays.user(item, weight, time_ms, float(training.all.time_ms[end]))
        assert user is not None
        found = arrays.logits(user, np.arange(30, dtype=np.int32))
        np.testing.assert_allclose(found, expected[row], atol=1e-4)


@pytest.mark.parametrize("relabelled", [False, True])
def test_the_next_item_of_a_chain_ranks_first(relabelled: bool) -> None:
    rows = chains(relabelled=relabelled)
    arrays = fitted(rows)
    right = 0
    for user in range(100):
        mine = rows.item[rows.user == user]
        scores = arrays.targets @ user_of(arrays, mine[2::-1].tolist())
        scores[mine[:3]] = -np.inf
        right += int(scores.argmax()) == mine[3]
    assert right > 90


def sets(apart_ms: int) -> Interactions:
    """Users with three of 60 items in the order of item ids, `apart_ms` apart."""
    users, random = 1500, np.random.default_rng(8)
    chosen = np.sort(np.array([random.choice(60, 3, replace=False) for _ in range(users)]), axis=1)
    pairs = [(user, int(item)) for user, items in enumerate(chosen) for item in items]
    return replace(
        shop.interactions(pairs, users, 60), time_ms=np.tile(np.arange(3) * apart_ms, users)
    )


def share_after_a_smaller_item(rows: Interactions) -> float:
    sequences, random = Sequences.of(rows), np.random.default_rng(3)
    share = np.ones(len(sequences), np.float32)
    larger = [
        (batch.target > batch.item)[batch.there]
        for batch in sequences.epoch(200, 20, share, random)
    ]
    return float(np.concatenate(larger).mean())


def test_the_order_within_a_set_is_no_order_of_events() -> None:
    assert share_after_a_smaller_item(sets(0)) == pytest.approx(0.5, abs=0.02)
    assert share_after_a_smaller_item(sets(1)) == 1.0  # the control: an order of times


def test_the_model_learns_nothing_from_the_order_of_item_ids_in_a_set() -> None:
    def learned(rows: Interactions) -> float:
        arrays, higher = fitted(rows, replace(CONFIG, epochs=4)), []
        for item in range(20, 40):
            logits = arrays.targets @ user_of(arrays, [item])
            higher.append(logits[item + 1 :].mean() - logits[:item].mean())
        return float(np.mean(higher))

    assert learned(sets(1)) > 1.0  # the control: it is in the times
    assert abs(learned(sets(0))) < 0.5


def test_an_epoch_has_every_target_once_after_the_item_before_it() -> None:
    random = np.random.default_rng(4)
    lengths = random.integers(1, 60, 80)
    user = np.repeat(np.arange(80, dtype=np.int32), lengths)
    item = np.arange(len(user), dtype=np.int32)
    rows = Sequences(user, item, np.ones(len(user), np.float32), np.arange(len(user)) * DAY)
    found = []
    for batch in rows.epoch(100, 20, rows.weight, random):
        assert batch.there.shape[1] <= 20
        assert batch.there.sum() < 100 + 20
        np.testing.assert_array_equal(batch.target[batch.there], batch.item[batch.there] + 1)
        found.append(batch.target[batch.there])
    first = np.cumsum(lengths) - lengths
    assert np.sort(np.concatenate(found)).tolist() == np.setdiff1d(item, first).tolist()


def test_a_user_s_own_items_are_no_negatives() -> None:
    from training.models.sequence import LogSumExp, _own_items

    row, column = _own_items(np.array([2, 1]), np.array([0, 1, 3]), np.array([1, 2, 4]))
    pairs = set(zip(row.tolist(), column.tolist(), strict=True))
    assert pairs == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 3), (2, 4)}
    users, items = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    bias = torch.randn(5, requires_grad=True)
    positive = (users * items[[1, 2, 4]]).sum(1)
    index = torch.from_numpy(row), torch.from_numpy(column)
    total = LogSumExp.apply(users, items, bias, positive, *index)
    logits = users @ items.T + bias
    logits[index] = float("-inf")
    expected = torch.logsumexp(torch.cat([logits, positive[:, None]], 1), 1)
    torch.testing.assert_close(total, expected)
    leaves = users, items, bias
    found = torch.autograd.grad((total**2).sum(), leaves, retain_graph=True)
    for ours, theirs in zip(found, torch.autograd.grad((expected**2).sum(), leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_seed_decides_every_number() -> None:
    rows = chains()
    config = replace(CONFIG, epochs=2)
    first, again = fitted(rows, config), fitted(rows, config)
    np.testing.assert_array_equal(first.targets, again.targets)
    assert np.abs(first.targets - fitted(rows, replace(config, seed=2)).targets).max() > 0.01


def test_a_training_that_was_killed_ends_as_if_it_was_not(tmp_path: Path) -> None:
    rows, config = chains(), replace(CONFIG, epochs=4, validation=20, patience=9)

    class Killed(Exception):
        pass

    class Recorded(Training):
        done: ClassVar[list[int]] = []
        killed_in = 0

        def _epoch(self, budget: TimeBudget) -> None:
            number = budget.epochs
            if number == self.killed_in:
                raise Killed
            super()._epoch(budget)
            self.done.append(number)

    class Dying(Recorded):
        killed_in = 3

    sequences = Sequences.of(rows)
    whole = Training(sequences, ItemInputs(), 30, config)
    whole.run()
    with pytest.raises(Killed):
        Dying(sequences, ItemInputs(), 30, config).run(tmp_path)
    continued = Recorded(sequences, ItemInputs(), 30, config)
    continued.run(tmp_path)
    assert Recorded.done == [1, 2, 3, 4]
    torch.testing.assert_close(
        continued.network.state_dict(), whole.network.state_dict(), rtol=0, atol=0
    )
    other = Training(sequences, ItemInputs(), 30, replace(config, rate=0.02))
    assert other.fingerprint() != continued.fingerprint()


def test_the_best_epoch_on_the_held_out_targets_is_kept() -> None:
    rows = Sequences.of(chains())
    training = Training(rows, ItemInputs(), 30, replace(CONFIG, epochs=9, patience=2))
    values, states = iter([0.1, 0.3, 0.2, 0.2, 0.9]), []

    def measure() -> float:
        states.append(training.network.inputs.detach().clone())
        return next(values)

    training.run(stopping=EarlyStopping(measure, patience=2))
    assert len(states) == 4
    torch.testing.assert_close(training.network.inputs.detach(), states[1])


@pytest.mark.parametrize(("seconds", "is_short"), [(0.0, True), (1e9, False)])
def test_an_epoch_ends_when_the_time_is_used_up(seconds: float, is_short: bool) -> None:
    config = replace(CONFIG, epochs=1, seconds=seconds)
    training = Training(Sequences.of(chains()), ItemInputs(), 30, config)
    training.run()
    steps = {int(state["step"]) for state in training.optimisers[1].state.values()}
    assert (steps == {1}) is is_short, steps


def test_targets_of_the_validation_are_not_learned() -> None:
    rows = Sequences.of(chains())
    training = Training(rows, ItemInputs(), 30, replace(CONFIG, validation=10))
    assert len(training.held) == 10
    assert len(training.rows) == len(rows) - 10
    assert (np.diff(np.append(rows.user, -1))[training.held] != 0).all()  # the newest of its user


def test_an_item_without_interactions_has_a_vector_from_its_content() -> None:
    rows = shop.checkerboard()[0].also(["even", "odd", "unknown"])
    texts = np.zeros((43, 2), np.float32)
    texts[np.arange(40), np.arange(40) % 2] = 1.0
    texts[40, 0] = texts[41, 1] = 1.0
    arrays = fitted(rows, replace(CONFIG, drop_item=0.3), texts=texts)
    even, odd = user_of(arrays, [2, 4, 6]), user_of(arrays, [3, 5, 7])
    assert (arrays.targets[40] - arrays.targets[41]) @ (even - odd) > 1.0
    assert user_of(arrays, [40]) @ arrays.targets[[2, 4, 6]].mean(0) > (
        user_of(arrays, [41]) @ arrays.targets[[2, 4, 6]].mean(0)
    )
    assert arrays.targets[42, -1] == UNKNOWN_BIAS
    assert not arrays.known[42]
    assert (arrays.targets @ even).argmin() == 42
    assert np.isnan(arrays.logits(even, np.array([42], np.int32))).all()


def test_a_warm_start_begins_at_the_previous_vectors_with_the_others_rotated_to_them() -> None:
    rows = Sequences.of(chains())
    cold = Training(rows, ItemInputs(), 30, replace(CONFIG, dim=8))
    start = cold.network.item.all().numpy()
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))[0].astype(np.float32)
    previous = start @ rotation
    previous[20:] = 0.0  # the previous model did not know these items
    warm = Training(rows, ItemInputs(previous=previous), 30, replace(CONFIG, dim=8))
    np.testing.assert_allclose(warm.network.item.all(), start @ rotation, atol=1e-4)


def test_ppmi_and_its_svd_match_a_dense_oracle() -> None:
    random = np.random.default_rng(5)
    user = np.sort(random.integers(0, 40, 300)).astype(np.int32)
    item = random.integers(0, 25, 300).astype(np.int32)
    owned = np.zeros((40, 25))
    owned[user, item] = 1.0
    counts = owned.T @ owned
    np.fill_diagonal(counts, 0.0)
    sums = counts.sum(1)
    with np.errstate(divide="ignore"):
        expected = np.maximum(np.log(counts * sums.sum() / np.outer(sums, sums)), 0.0)
    np.testing.assert_allclose(ppmi.ppmi(user, item, 25).toarray(), expected, atol=1e-5)
    left, values, _ = np.linalg.svd(expected)
    oracle = (left * np.sqrt(values))[:, :24]
    oracle = oracle @ oracle.T
    found = ppmi.item_vectors(user, item, 25, 24, seed=1).astype(np.float64)
    gram = found @ found.T
    np.testing.assert_allclose(gram / np.trace(gram), oracle / np.trace(oracle), atol=1e-4)
    assert np.square(found).sum(1).mean() == pytest.approx(1.0, rel=1e-4)


def test_without_pairs_there_is_no_model() -> None:
    assert sequence_training.fit(shop.interactions([(0, 0), (1, 1)], 2, 2), CONFIG) is None


def test_a_user_vector_is_computed_without_torch() -> None:
    code = (
        "import sys, numpy as np\n"
        "from tests.scoring.test_sequence_encoder import an_encoder, some_towers\n"
        "towers = some_towers(an_encoder())\n"
        "one = np.ones(1, np.float32)\n"
        "assert towers.user(np.zeros(1, np.int32), one, np.zeros(1), 0.0) is not None\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_serving_finds_the_nearest_items_by_the_published_index(tmp_path: Path) -> None:
    arrays = board()
    vector = user_of(arrays, [3, 5])
    exact = np.argsort(-(arrays.targets @ vector))[:10].tolist()
    found = index_search(tmp_path / "nowhere", arrays.targets)(vector, 10)
    assert set(found.tolist()) == set(exact)
    built, report = ann_index.make(arrays.targets, vector[None])
    ann_index.write(built, tmp_path, ann_index.TOWERS)
    assert report.recall == 1.0
    assert index_search(tmp_path / ann_index.TOWERS, arrays.targets)(vector, 10).tolist() == exact


def test_the_model_is_a_source_of_candidates() -> None:
    arrays = board()
    model = a_model(40, towers=arrays, factors=None, content=None)
    history = np.array([2, 4], np.int32)
    state = UserState(history, np.ones(2, np.float32), np.zeros(2), history, 0.0)
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

"""NCF learns which items belong to which users, and NumPy computes what torch has learned."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from afterclick.artifact import read_manifest
from afterclick.features import FEATURE_NAMES, features
from afterclick.ncf import UNKNOWN, NcfArrays
from afterclick.retrieval import SOURCES, CandidateLimits, Searches, candidate_items, exact_search
from afterclick.sequence_encoder import AGES_DAYS
from afterclick.user_vectors import UserVectors
from tests.scoring.examples import a_model, a_state, a_view, features_of, some_ncf
from tests.training import shop
from training import ann_index
from training.challenger import RunMetadata, write_model
from training.config import NcfConfig
from training.fit import FittedModel
from training.models import ncf
from training.models.history_examples import HistoryExamples
from training.query_replay import align

DAY = 86_400_000
RUN = RunMetadata(version="m1", cut_ms=0, parameters={}, lineage={}, seconds={})
CONFIG = NcfConfig(dim=16, hidden=8, epochs=5, rate=0.01, sample=40, min_interactions=2, seed=1)


@cache
def board() -> NcfArrays:
    """NCF learned from the checkerboard."""
    arrays = ncf.fit(shop.checkerboard()[0], CONFIG)
    assert arrays is not None
    return arrays


def test_numpy_computes_what_torch_has_learned() -> None:
    rows, _ = shop.checkerboard()
    examples = HistoryExamples.of(rows)
    start = np.random.default_rng(1).normal(size=(40, 16)).astype(np.float32)
    network = ncf.train(examples, start, replace(CONFIG, epochs=2))
    arrays, every = network.export(), np.arange(40, dtype=np.int32)
    batch = examples.batch(np.arange(100, 130), np.random.default_rng(1))
    history = torch.from_numpy(np.where(batch.history >= 0, batch.history, 40).astype(np.int64))
    with torch.no_grad():
        product, mlp = network.users(
            history, torch.from_numpy(batch.weight), torch.from_numpy(batch.age.astype(np.int64))
        )
        item = torch.arange(40)
        logits = network.products(product, item) + network.deep(mlp, item)
    limits = AGES_DAYS
    middle = np.r_[limits[:1] / 2, (limits[1:] + limits[:-1]) / 2, 2 * limits[-1:]]
    for row in range(30):
        there = batch.history[row] >= 0
        mine, age = batch.history[row][there], batch.age[row][there]
        now = 1e12
        user = arrays.user(mine, batch.weight[row][there], now - middle[age] * DAY, now)
        assert user is not None
        np.testing.assert_allclose(arrays.scores(user, every), logits[row].numpy(), atol=1e-4)


def test_it_learns_the_users_half_of_the_board() -> None:
    for parity in (0, 1):
        state = a_state([parity + 2, parity + 8])
        user = board().user(state.items, state.weights, state.times_ms, state.now_ms)
        assert user is not None
        best = np.argsort(-board().scores(user, np.arange(40, dtype=np.int32)))[:12]
        assert (best % 2 == parity).mean() >= 0.75


def test_a_seed_decides_everything() -> None:
    rows, _ = shop.checkerboard()
    short = replace(CONFIG, epochs=1)
    first, second, other = (ncf.fit(rows, replace(short, seed=seed)) for seed in (1, 1, 2))
    assert first is not None
    assert second is not None
    assert other is not None
    np.testing.assert_array_equal(first.targets, second.targets)
    assert not np.array_equal(first.targets, other.targets)


def test_rare_items_are_unknown_and_without_pairs_there_is_no_ncf() -> None:
    rows = shop.interactions([(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)], 2, 4)
    arrays = ncf.fit(rows, replace(CONFIG, epochs=1))
    assert arrays is not None
    assert arrays.known.tolist() == [True, True, False, False]
    assert ncf.fit(shop.interactions([(0, 0), (1, 1)], 2, 2), CONFIG) is None


def test_an_event_changes_the_scores_and_new_items_are_unknown() -> None:
    model = a_model(ncf=some_ncf(6))
    column, asked = FEATURE_NAMES.index("ncf_score"), np.array([0, 1, 2, 7], np.int32)
    before = features_of(model, a_state([3]), a_view(8), asked)[:, column]
    after = features_of(model, a_state([4, 3]), a_view(8), asked)[:, column]
    assert np.isfinite(before[:2]).all()
    assert (before[:2] != after[:2]).all()
    assert np.isnan(after[2:]).all()
    for history in ([], [2], [7]):  # none, unknown to NCF, newer than the model
        assert np.isnan(features_of(model, a_state(history), a_view(8), asked)[:, column]).all()


def test_scores_are_the_product_and_the_mlp() -> None:
    arrays, state = some_ncf(9), a_state([3, 20, 5, 0], age_days=4.0)
    user = arrays.user(state.items, state.weights, state.times_ms, state.now_ms)
    known = state.items < 9
    days = (state.now_ms - state.times_ms[known]) / DAY
    weight = state.weights[known] * arrays.ages[np.searchsorted(AGES_DAYS, days, "right")]
    total = weight @ arrays.history[state.items[known]]
    product, mlp = total[:4] / np.linalg.norm(total[:4]), total[4:] / weight.sum()
    assert user is not None
    np.testing.assert_allclose(user, np.r_[product, 1.0, mlp], rtol=1e-4)
    first = np.maximum(arrays.hidden[4] + mlp, 0.0)
    second = np.maximum(arrays.layers[:, :-2] @ first + arrays.layers[:, -2], 0.0)
    expected = arrays.targets[4] @ np.r_[product, 1.0] + arrays.layers[:, -1] @ second
    np.testing.assert_allclose(arrays.scores(user, np.array([4], np.int32)), expected, rtol=1e-4)


def test_ncf_is_a_source_of_candidates() -> None:
    model = a_model(40, ncf=board(), factors=None, content=None)
    found = candidate_items(
        model,
        UserVectors.of(model, a_state([2, 4])),
        a_view(40).top,
        Searches(ncf=exact_search(board().targets)),
        CandidateLimits(recent=0, ncf=12, trending=0),
    )
    assert {SOURCES[source] for source in found.sources} == {"ncf"}
    assert not {2, 4} & set(found.items.tolist())
    assert sum(item % 2 == 0 for item in found.items.tolist()) >= 9


def test_an_aligned_model_scores_the_same_items_alike() -> None:
    model = a_model(ncf=some_ncf(6))
    other = align(model, np.array(["new", "i5", "i3", "i0"]))
    state, moved = a_state([3, 0]), a_state([2, 3])
    column = FEATURE_NAMES.index("ncf_score")
    of_model = features(model, UserVectors.of(model, state), a_view(6), np.array([5], np.int32))
    of_other = features(other, UserVectors.of(other, moved), a_view(4), np.array([1, 0], np.int32))
    assert of_other[0, column] == of_model[0, column]
    assert np.isnan(of_other[1, column])
    assert other.ncf is not None
    assert other.ncf.targets[0, -1] == UNKNOWN


def test_an_artifact_holds_an_index_of_ncf_and_its_recall(tmp_path: Path) -> None:
    fitted = FittedModel(a_model(40, ncf=board()), np.ones((2, 4), np.float32))
    folder = write_model(tmp_path, "m1", fitted, None, RUN)
    assert (folder / ann_index.NCF).is_file()
    manifest = read_manifest(folder)
    assert manifest.parameters["ncf_index"]["recall@100"] == 1.0

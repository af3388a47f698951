"""Choosing and mixing models on validation rows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from tests.training import shop
from tests.training.test_published import write
from training.evaluation.auto import AutoSearch
from training.evaluation.benchmark_models import MODELS, MatrixModel, make, within_time
from training.evaluation.mixing import NORMS, Mixture, Validation, find_weights, normalised
from training.evaluation.published import BenchmarkRequest, run, validation_score
from training.evaluation.published_split import RankingTask, load
from training.interactions import Interactions
from training.models.item_item import ItemItem


def test_auto_reports_what_it_tried_and_how_it_mixed(tmp_path: Path) -> None:
    split = write(tmp_path, valid=True)
    run(BenchmarkRequest(split, "item_item", seconds=1e-3))  # compiles outside of the search's time
    answer = run(BenchmarkRequest(split, "auto", seconds=20.0, seeds=2))
    assert answer["recall@20"] > 0.95
    assert sum(answer["weights"].values()) == pytest.approx(1.0)
    assert set(answer["weights"]) == set(answer["params"])
    assert {each["model"] for each in answer["tried"]} == set(MODELS)
    fields = {"model", "settings", "score", "seconds", "stopped_because"}
    assert all(set(each) == fields for each in answer["tried"])
    assert len(answer["per_seed"]["ndcg@20"]) == 2


def test_a_search_without_time_still_answers(tmp_path: Path) -> None:
    answer = run(BenchmarkRequest(write(tmp_path, valid=True), "auto", seconds=1e-3))
    stopped = {each["model"]: each["stopped_because"] for each in answer["tried"]}
    assert stopped["two_tower"] == "no time left"
    assert answer["weights"]


def test_a_mixture_scores_test_rows_as_it_did_validation_rows(tmp_path: Path) -> None:
    split = load(write(tmp_path, valid=True))
    request = BenchmarkRequest(tmp_path, "auto")

    def score(model: MatrixModel) -> float:
        return validation_score(model, split, request)

    search = AutoSearch(split, 10.0, 42, score, names=("popularity", "item_item", "als"))
    mixed = search.run()
    mixed.observe(split.train)
    assert score(mixed) >= max(each.score or 0.0 for each in search.tried) - 0.02
    first = mixed.scores(np.arange(5))
    mixed.fit(split.train, 42)  # the same seed and rows
    np.testing.assert_allclose(mixed.scores(np.arange(5)), first, atol=1e-3)


def two_halves(users: int = 300, items: int = 40) -> tuple[Validation, np.ndarray]:
    """One model knows the target of even users, the other of odd ones; a third knows nothing."""
    random = np.random.default_rng(4)
    targets = random.integers(0, items, users)
    scores = random.normal(size=(3, users, items)).astype(np.float32)
    scores[1] *= 50.0  # another scale
    for user, target in enumerate(targets.tolist()):
        scores[user % 2, user, target] += 3.0 * (50.0 if user % 2 else 1.0)
    target = sparse.csr_matrix((np.ones(users), (np.arange(users), targets)), (users, items))
    seen = sparse.csr_matrix((users, items))
    models = [lambda chosen, model=model: scores[model][chosen] for model in range(3)]
    return Validation.of(models, np.arange(users), seen, target), scores


def test_weights_combine_models_and_leave_out_the_useless_one() -> None:
    found, _ = two_halves()
    mixture = find_weights(found)
    alone = [found.ndcg("user", row).mean() for row in np.eye(3)]
    mixed = found.ndcg(mixture.norm, np.array(mixture.weights)).mean()
    assert mixed > max(alone) * 1.15
    assert 0.3 < mixture.weights[0] < 0.7
    assert mixture.weights[2] < 0.15


@pytest.mark.parametrize("norm", NORMS)
def test_the_scale_of_a_model_does_not_matter(norm: str) -> None:
    random = np.random.default_rng(1)
    scores = random.normal(size=(4, 300)).astype(np.float32)
    scale = float(scores.std(axis=1).mean())
    one, other = normalised(scores, norm, scale), normalised(1000 * scores, norm, 1000 * scale)
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_seen_items_do_not_change_a_mixture() -> None:
    random = np.random.default_rng(1)
    scores = random.normal(size=(2, 30)).astype(np.float32)
    seen = sparse.csr_matrix((np.ones(2), ([0, 1], [3, 4])), (2, 30))
    other = scores.copy()
    other[0, 3] += 100.0
    for norm in NORMS:
        mixture = Mixture(norm, (1.0,), (1.0,))
        np.testing.assert_allclose(
            mixture.scores([scores], seen), mixture.scores([other], seen), atol=1e-5
        )


def test_items_without_a_score_have_no_rank() -> None:
    scores = np.zeros((1, 30), np.float32)
    scores[0, 7] = 1.0
    ranked = normalised(scores, "rank", 1.0)
    assert ranked[0, 7] == pytest.approx(0.1)
    assert np.count_nonzero(ranked) == 1


def test_a_solve_that_would_take_too_long_is_replaced() -> None:
    settings = asdict(ItemItem(ridge=5.0))
    assert within_time("item_item", settings, 15_000, 3600.0) == settings
    neighbours = within_time("item_item", settings, 15_000, 60.0)
    assert (neighbours["ridge"], neighbours["dense_up_to"] < 15_000) == (5.0, True)
    assert within_time("item_item", settings, 50_000, 10.0)["ridge"] > 100.0


@pytest.mark.parametrize("name", ["popularity", "item_item", "transitions", "als"])
def test_random_ids_change_a_model_by_no_more_than_noise(name: str) -> None:
    """Ids, and with them the order of users and items, are drawn anew; the times stay."""
    rows, held_out = shop.checkerboard()
    random = np.random.default_rng(6)
    figures = []
    for _ in range(2):
        user, item = (random.permutation(count) for count in rows.shape)
        renamed = Interactions(
            np.array([f"u{number:04}" for number in random.permutation(rows.shape[0])]),
            np.array([f"i{number:04}" for number in random.permutation(rows.shape[1])]),
            user[rows.user].astype(np.int32),
            item[rows.item].astype(np.int32),
            rows.time_ms,
            rows.weight,
        )
        places = user[[u for u, _ in held_out]], item[[i for _, i in held_out]]
        target = sparse.csr_matrix((np.ones(len(held_out), np.float32), places), rows.shape)
        model = make(name, {})
        model.fit(renamed if name == "transitions" else renamed.matrix(), 1)
        figures.append(RankingTask(renamed.matrix(), target).measure(model.scores))
    for metric in ("ndcg@10", "recall@10"):
        # two targets of each of 40 users: the standard error is at most 0.06
        assert figures[0][metric] == pytest.approx(figures[1][metric], abs=0.1), metric

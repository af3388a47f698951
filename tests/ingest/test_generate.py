"""The generated shop has the structure that a recommender learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from implicit.als import AlternatingLeastSquares
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from afterclick.errors import BadInput
from ingest.datasets import open_dataset
from ingest.generate import ShopConfig, generate_shop
from ingest.sorting import profile
from tests.ingest.conftest import read


@pytest.fixture(scope="module")
def default_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("default") / "shop"
    generate_shop(folder)
    return folder


def test_a_generated_shop_has_the_requested_size_and_no_bad_line(default_shop: Path) -> None:
    found = profile(open_dataset(default_shop))
    assert (found.rows, found.users, found.items, found.catalogue_titles) == (
        40_000,
        2_000,
        800,
        800,
    )
    assert (found.bad_lines, found.catalogue_bad_lines, found.ignored) == (0, 0, ())


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    config = ShopConfig(users=50, items=60, events=400, days=30)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate_shop(tmp_path / name, ShopConfig(**{**vars(config), "seed": seed}))
    for file in ("reviews.csv", "items.csv"):
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b != c


def test_no_user_reviews_an_item_twice_and_times_ascend(default_shop: Path) -> None:
    rows, _ = read(default_shop / "reviews.csv")
    assert len({(r["user_id"], r["item_id"]) for r in rows}) == len(rows)
    times = [r["time_ms"] for r in rows]
    assert times == sorted(times)
    assert (times[-1] - times[0]) / 86_400_000 < 540


def test_a_generated_shop_has_a_long_tail_and_user_histories(default_shop: Path) -> None:
    rows, _ = read(default_shop / "reviews.csv")
    sold = np.sort(np.unique([r["item_id"] for r in rows], return_counts=True)[1])[::-1]
    assert sold[:80].sum() > 0.25 * len(rows)
    assert np.median(sold) < sold[0] / 8
    histories = np.unique([r["user_id"] for r in rows], return_counts=True)[1]
    assert (histories >= 5).mean() > 0.7


def test_als_beats_popularity_on_a_generated_shop(default_shop: Path) -> None:
    rows, _ = read(default_shop / "reviews.csv")
    cut = int(len(rows) * 0.85)
    users, user = np.unique([r["user_id"] for r in rows], return_inverse=True)
    items, item = np.unique([r["item_id"] for r in rows], return_inverse=True)
    train = csr_matrix(
        (np.ones(cut, np.float32), (user[:cut], item[:cut])), (len(users), len(items))
    )
    next_item = dict(
        zip(user[cut:][::-1], item[cut:][::-1], strict=True)
    )  # the first after the cut
    known = np.array([u for u in next_item if train[u].nnz])
    target = np.array([next_item[u] for u in known])
    model = AlternatingLeastSquares(
        factors=32, regularization=0.1, alpha=5, iterations=12, random_state=1
    )
    model.fit(train, show_progress=False)
    learned, _ = model.recommend(known, train[known], N=10)
    popular = np.argsort(-np.bincount(item[:cut]))[:200]
    by_count = np.array([[i for i in popular if not train[u, i]][:10] for u in known])
    assert hit_rate(learned, target) > 1.2 * hit_rate(by_count, target)


def hit_rate(lists: NDArray[np.int64], target: NDArray[np.int64]) -> float:
    return float((lists == target[:, None]).any(axis=1).mean())


@pytest.mark.parametrize(
    "config", [ShopConfig(items=10), ShopConfig(users=0), ShopConfig(events=10), ShopConfig(days=0)]
)
def test_impossible_sizes_are_rejected(tmp_path: Path, config: ShopConfig) -> None:
    with pytest.raises(BadInput):
        generate_shop(tmp_path, config)

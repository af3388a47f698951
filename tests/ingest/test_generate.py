"""The generated shop has the structure that a recommender learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from implicit.als import AlternatingLeastSquares
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from afterclick.errors import BadDataset, BadInput
from afterclick.events import Item
from ingest.click_model import drawn_factors
from ingest.datasets import open_dataset
from ingest.generate import ShopConfig, generate_shop
from ingest.items import read_items
from ingest.profile import profile
from ingest.rows import ReadReport
from ingest.simulation import fitted_factors
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


def factors_of(shop: Path) -> dict[str, NDArray[np.float64]]:
    return {item.item_id: np.array(drawn_factors(item.item_id)) for item in items_of(shop)}


def test_co_purchases_reflect_latent_factors_that_the_catalogue_does_not_show(
    default_shop: Path,
) -> None:
    factors = factors_of(default_shop)
    listed = items_of(default_shop)
    vectors = np.array([factors[item.item_id] for item in listed])
    for shown in ([item.categories[-1] for item in listed], [item.brand or "" for item in listed]):
        assert explained(vectors, shown) < 0.08, "by chance 3 or 4 % of 30 groups of 800 items"
    rows, _ = read(default_shop / "reviews.csv")
    bought = np.array([factors[row["item_id"]] for row in rows])
    mixed = np.random.default_rng(1).permutation(bought)
    users = np.array([row["user_id"] for row in rows])
    # a user's purchases point in one direction, unlike as many purchases of anybody
    assert mean_length(bought, users) > 1.5 * mean_length(mixed, users)


def mean_length(vectors: NDArray[np.float64], users: NDArray[np.str_]) -> float:
    """Of the mean vectors of users with 20 purchases or more."""
    _, user, counts = np.unique(users, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), vectors.shape[1]))
    np.add.at(sums, user, vectors)
    means = sums[counts >= 20] / counts[counts >= 20, None]
    return float(np.linalg.norm(means, axis=1).mean())


def test_factors_fitted_to_reviews_find_the_latent_ones_and_no_category(
    default_shop: Path,
) -> None:
    fitted = fitted_factors(open_dataset(default_shop))
    truth = factors_of(default_shop)
    names = sorted(fitted)
    assert len(names) > 600
    vectors, wanted = (np.array([of[name] for name in names]) for of in (fitted, truth))
    categories = {i.item_id: i.categories[-1] for i in items_of(default_shop)}
    assert explained(vectors, [categories[name] for name in names]) < 0.02
    solution = np.linalg.lstsq(vectors, wanted, rcond=None)[0]
    left = ((wanted - vectors @ solution) ** 2).sum() / (wanted**2).sum()
    assert left < 0.8
    assert fitted_factors(open_dataset(default_shop)) == fitted


def test_too_few_reviews_for_latent_factors_are_rejected(tmp_path: Path) -> None:
    generate_shop(tmp_path, ShopConfig(users=40, items=60, events=60, days=30))
    with pytest.raises(BadDataset, match="latent factors need more than"):
        fitted_factors(open_dataset(tmp_path))


def items_of(shop: Path) -> list[Item]:
    return list(read_items(shop / "items.csv", ReadReport()))


def explained(vectors: NDArray[np.float64], groups: list[str]) -> float:
    """Share of the variance of `vectors` (n, d) between groups."""
    _, group = np.unique(groups, return_inverse=True)
    means = np.array([vectors[group == n].mean(axis=0) for n in range(int(group.max()) + 1)])
    between = ((means[group] - vectors.mean(axis=0)) ** 2).sum()
    return float(between / ((vectors - vectors.mean(axis=0)) ** 2).sum())


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

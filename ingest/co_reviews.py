"""Latent factors of items fitted to real co-reviews, for the simulated shoppers.

reads  file  the reviews and items of a dataset

A truncated SVD of the users × items matrix, each entry divided by the square roots of its row's and
column's sum, without the first component, which is popularity. The mean of an item's last category,
the most special one, is subtracted: what remains differs between items of one category.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from afterclick.arrays import Float64Array, Int64Array
from afterclick.errors import BadDataset
from ingest.datasets import Dataset
from ingest.items import read_items
from ingest.latent_factors import DIMENSIONS, Factors
from ingest.reading import read_interactions
from ingest.rows import ReadReport

MIN_REVIEWS = 5
"""Reviews that an item needs for factors."""


def fitted_factors(dataset: Dataset) -> dict[str, Factors]:
    """item_id → factors; their variance over items is about 1 in each dimension.

    Raises BadDataset if too few items have MIN_REVIEWS reviews.
    """
    batches = list(read_interactions(dataset.reviews, ReadReport(), dataset.reviews_format))
    users, _ = _numbered(batch["user_id"] for batch in batches)
    items, item_ids = _numbered(batch["item_id"] for batch in batches)
    known = np.bincount(items, minlength=len(item_ids)) >= MIN_REVIEWS
    if known.sum() <= DIMENSIONS + 1:
        raise BadDataset(
            f"{dataset.path}: latent factors need more than {DIMENSIONS + 1} items with "
            f"{MIN_REVIEWS} reviews, found {known.sum()}; give a larger dataset or none"
        )
    kept = known[items]
    vectors = _components(users[kept], (np.cumsum(known) - 1)[items[kept]])
    names = [name for name, keep in zip(item_ids, known, strict=True) if keep]
    residuals = _scaled(_without_categories(vectors, names, _categories(dataset)))
    return {name: tuple(row) for name, row in zip(names, residuals.tolist(), strict=True)}


def _numbered(columns: Iterable[pa.Array]) -> tuple[Int64Array, list[str]]:
    """(n,) index of each value, and the values."""
    encoded = pa.chunked_array(list(columns), pa.string()).combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _components(users: Int64Array, items: Int64Array) -> Float64Array:
    """(n_items, DIMENSIONS) right singular vectors, without the first."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import svds

    matrix = csr_matrix((np.ones(len(users)), (users, items)))
    matrix.data[:] = 1.0  # a repeated review counts once
    rows, columns = matrix.nonzero()
    per_user, per_item = (np.asarray(matrix.sum(axis=axis)).ravel() for axis in (1, 0))
    matrix.data /= np.sqrt(per_user[rows] * per_item[columns])
    start = np.ones(min(matrix.shape))  # the same result in every run
    _, values, vectors = svds(matrix, k=DIMENSIONS + 1, v0=start)
    return np.asarray(vectors[np.argsort(-values)[1:]].T)


def _categories(dataset: Dataset) -> dict[str, str]:
    """item_id → its last category."""
    if dataset.items is None:
        return {}
    listed = read_items(dataset.items, ReadReport(), dataset.items_format)
    return {item.item_id: item.categories[-1] for item in listed if item.categories}


def _without_categories(
    vectors: Float64Array, names: list[str], category: Mapping[str, str]
) -> Float64Array:
    """Minus the mean of each category; items without a category share one."""
    _, group = np.unique([category.get(name, "") for name in names], return_inverse=True)
    sums = np.zeros((int(group.max()) + 1, vectors.shape[1]))
    np.add.at(sums, group, vectors)
    return np.asarray(vectors - (sums / np.bincount(group)[:, None])[group])


def _scaled(vectors: Float64Array) -> Float64Array:
    """Each dimension of equal spread, then each item of length √DIMENSIONS, or 0."""
    even = vectors / np.maximum(vectors.std(axis=0), 1e-12)
    length = np.linalg.norm(even, axis=1, keepdims=True)
    return np.asarray(even * np.sqrt(DIMENSIONS) / np.maximum(length, 1e-9))

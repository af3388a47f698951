"""The FAISS index and its recall compared with exact search."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from afterclick.ann import nearest, padded
from training import ann_index


def vectors(n: int, dim: int = 16, clusters: int = 30) -> np.ndarray:
    random = np.random.default_rng(5)
    centres = random.normal(size=(clusters, dim))
    return (centres[random.integers(0, clusters, n)] + 0.3 * random.normal(size=(n, dim))).astype(
        np.float32
    )


@pytest.mark.parametrize(("kind", "least"), [("flat", 1.0), ("hnsw", 0.9), ("ivf", 0.7)])
def test_recall_against_exact_search_is_measured(kind: str, least: float) -> None:
    known = vectors(4000)
    made, report = ann_index.make(known, vectors(50), kind=kind)
    assert made.ntotal == report.items == 4000
    assert least <= report.recall <= 1.0


def test_an_index_of_8_bits_finds_as_much_as_one_of_exact_vectors() -> None:
    known, asked = vectors(20_000, 17), vectors(100, 17)
    eight_bit, _ = ann_index.build(known, kind="ivf")
    exact = faiss.IndexIVFFlat(
        faiss.downcast_index(eight_bit.quantizer), 24, eight_bit.nlist, faiss.METRIC_INNER_PRODUCT
    )
    exact.add(padded(known))
    exact.nprobe = eight_bit.nprobe
    found = [eight_bit.search(padded(asked), 30)[1], exact.search(padded(asked), 30)[1]]
    scores = [np.take_along_axis(asked @ known.T, rows, axis=1).sum() for rows in found]
    rescored = [nearest(eight_bit, known, query, 30) for query in asked]
    again = sum((asked[i] @ known[rows].T).sum() for i, rows in enumerate(rescored))
    assert scores[0] < again
    assert again == pytest.approx(scores[1], rel=1e-5)


def test_a_poor_index_is_reported_as_poor() -> None:
    known = vectors(4000)
    made, _ = ann_index.build(known, kind="ivf")
    made.nprobe = 1
    assert ann_index.recall(made, known, vectors(50)) < 0.9


def test_a_small_catalogue_gets_an_exact_index_that_survives_the_disk(tmp_path: Path) -> None:
    known, asked = vectors(300), vectors(5)
    made, report = ann_index.make(known, asked)
    assert (report.kind, report.recall) == ("flat", 1.0)
    ann_index.write(made, tmp_path)
    found = faiss.read_index(str(tmp_path / ann_index.FILE)).search(asked, 10)[1]
    np.testing.assert_array_equal(found, np.argsort(-(asked @ known.T), axis=1)[:, :10])


def test_the_kind_follows_the_size() -> None:
    assert ann_index.build(vectors(1000))[1] == "flat"
    with pytest.raises(ValueError, match="flat, hnsw or ivf"):
        ann_index.build(vectors(10), kind="tree")

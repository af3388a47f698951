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


def test_an_index_of_16_bits_finds_as_much_as_one_of_exact_vectors() -> None:
    known, asked = vectors(20_000, 17), vectors(100, 17)
    made, _ = ann_index.build(known, kind="ivf")
    exact = faiss.IndexIVFFlat(
        faiss.downcast_index(made.quantizer), 24, made.nlist, faiss.METRIC_INNER_PRODUCT
    )
    exact.add(padded(known))
    exact.nprobe = made.nprobe
    every = asked @ known.T
    found = [nearest(made, query, 30) for query in asked]
    scores = sum(every[row, items].sum() for row, items in enumerate(found))
    best = np.take_along_axis(every, exact.search(padded(asked), 30)[1], axis=1).sum()
    assert scores == pytest.approx(best, rel=1e-4)


def test_items_that_are_not_known_are_never_found() -> None:
    known, asked = vectors(20_000, 17), vectors(20, 17)
    every_third = np.arange(len(known)) % 3 == 0
    made, kind = ann_index.build(known, every_third)
    assert kind == "ivf"
    for query in asked:
        found = nearest(made, query, 30)
        assert len(found) == 30
        assert every_third[found].all()


def test_a_poor_index_is_reported_as_poor() -> None:
    known = vectors(20_000)
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

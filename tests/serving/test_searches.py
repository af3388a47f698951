"""Items with content like an item's: the same with an index as without, of described items only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from serving.state.ann_search import content_search
from training import ann_index


def test_an_index_over_content_finds_what_exact_search_finds(tmp_path: Path) -> None:
    content = np.random.default_rng(1).normal(size=(400, 16)).astype(np.float32)
    content[::3] = 0.0
    described = content[content.any(axis=1)]
    ann_index.write(ann_index.build(described, "flat")[0], tmp_path, ann_index.CONTENT)
    indexed, exact = content_search(content, tmp_path / ann_index.CONTENT), content_search(content)
    for row in (1, 2, 50):
        found = indexed(content[row], 20)
        assert found.tolist() == exact(content[row], 20).tolist()
        assert content[found].any(axis=1).all()
    assert len(indexed(content[1], 1000)) == len(described)


def test_only_many_described_items_get_an_index() -> None:
    few = np.ones((100, 4), np.float32)
    assert ann_index.of_content(few) is None
    assert ann_index.kind_of(ann_index.FLAT_BELOW) == "ivf"

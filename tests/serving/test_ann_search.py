"""Search by content: indexed, exact, and for items added after the model was trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from afterclick.api import SimilarityKind
from afterclick.arrays import FloatArray
from afterclick.events import Item
from afterclick.model import UNKNOWN_BIAS, WordVectors
from afterclick.retrieval import SOURCES, Searches, candidate_items, exact_search
from afterclick.settings import Settings
from afterclick.user_vectors import UserVectors
from serving.request import PLAIN
from serving.state.ann_search import (
    MAX_NEW_PER_SEARCH,
    content_search,
    index_search,
    with_new_items,
)
from serving.state.snapshot import ServingSnapshot
from serving.tiers import similar_items
from tests.scoring.examples import a_state
from tests.serving import shop
from tests.serving.offline import Offline
from tests.serving.running import Running
from tests.waiting import wait_until
from training import ann_index

N = len(shop.item_ids())
LIKED = {"ann": ["camera-3"], "new": ["diver-1"], "bare": ["bare-1"]}


@dataclass(frozen=True, eq=False)
class RecordedWordVectors(WordVectors):
    """Records the texts that it encodes."""

    texts: list[str] = field(default_factory=list)

    def vector(self, text: str) -> FloatArray:
        self.texts.append(text)
        return super().vector(text)


def a_shop(words: WordVectors | None) -> Offline:
    return Offline(liked=LIKED, model=replace(shop.model("m1"), words=words))


def put(served: Offline, item_id: str, title: str | None, *categories: str) -> ServingSnapshot:
    """The snapshot after adding the item to the catalogue."""
    served.catalogue.put(Item(item_id=item_id, title=title, categories=categories))
    served.snapshots.current = served.snapshots.build()
    return served.snapshot


def test_each_text_is_encoded_once_and_after_a_change() -> None:
    words = RecordedWordVectors(shop.words().words, shop.words().vectors)
    served = a_shop(words)
    assert not words.texts
    put(served, "diver-1", "Camera for divers")
    snapshot = put(served, "diver-2", "Cable for divers", "Cables")
    assert words.texts == ["Camera for divers", "Cable for divers. Cables"]
    assert snapshot.content is not None
    np.testing.assert_allclose(snapshot.content.new[:, :2], np.eye(2))

    served.catalogue.put(
        Item(item_id="diver-2", title="Cable for divers", categories=("Cables",), price=9.0)
    )
    again = put(served, "camera-3", "In the model, with another title")
    assert again.generation != snapshot.generation
    assert again.content is snapshot.content
    assert again.content_search is snapshot.content_search

    renamed = put(served, "diver-1", "A renamed cable")
    assert words.texts[2:] == ["A renamed cable"]
    assert renamed.content is not None
    assert renamed.content.new[:, 1].tolist() == [1.0, 1.0]
    assert snapshot.content.new[0, 0] == 1.0  # the old snapshot is unchanged
    served.catalogue.remove("diver-1")
    served.snapshots.current = served.snapshots.build()
    assert served.snapshot.content is not None
    assert not served.snapshot.content.new[0].any()


def test_without_word_vectors_or_a_known_word_new_items_are_not_searched() -> None:
    for words, title in (
        (None, "Camera for divers"),
        (shop.words(), None),
        (shop.words(), "Snorkel"),
    ):
        served = a_shop(words)
        snapshot = put(served, "diver-1", title)
        assert snapshot.content_search is snapshot.loaded.content_search
        assert "diver-1" not in served.ids("ann", 100)
        assert not len(similar_items(snapshot, N, 10, kind=SimilarityKind.CONTENT)[0])


def test_another_model_encodes_with_its_own_word_vectors() -> None:
    served = a_shop(shop.words())
    put(served, "diver-1", "Camera for divers")
    other = replace(
        shop.model("m2"),
        words=WordVectors(np.array(["divers"]), np.eye(2, 8, dtype=np.float32)[1:]),
    )
    served.snapshots.use(replace(served.snapshot.loaded, version="m2", model=other))
    served.snapshots.current = served.snapshots.build()
    assert served.snapshot.content is not None
    assert served.snapshot.content.new[0, :2].tolist() == [0.0, 1.0]


def test_a_new_item_is_a_candidate_by_its_content() -> None:
    served = a_shop(shop.words())
    snapshot = put(served, "diver-1", "Camera for divers")
    assert snapshot.loaded.model is not None
    camera, cable = a_state([3]), a_state([shop.PER_KIND])
    found = [
        candidate_items(
            snapshot.loaded.model,
            UserVectors.of(snapshot.loaded.model, state),
            snapshot.view.top,
            Searches(content=snapshot.content_search, item_content=snapshot.content),
        )
        for state in (camera, cable)
    ]
    assert [SOURCES[source] for source in found[0].sources[found[0].items == N]] == ["content"]
    assert N not in found[1].items


def test_a_like_of_a_similar_item_recommends_the_new_item_with_its_reason() -> None:
    served = a_shop(shop.words())
    put(served, "diver-1", "Camera for divers")
    rows = {row["item_id"]: row for row in served.items("ann", 100, explain=True)}
    assert rows["diver-1"]["source"] == "content"
    assert rows["diver-1"]["reason"] == "because you liked The camera-3"
    assert rows["diver-1"]["contributions"]["content"] > 0
    assert rows["diver-1"]["attributions"][0]["item_id"] == "camera-3"


def test_a_like_of_a_new_item_recommends_similar_items() -> None:
    served = a_shop(shop.words())
    put(served, "diver-1", "Camera for divers")
    put(served, "bare-1", None)
    rows = served.items("new", 10)
    assert {row["item_id"].split("-")[0] for row in rows} == {"camera"}
    assert rows[0]["reason"] == "because you liked Camera for divers"
    assert {row["source"] for row in served.items("bare", 10)} == {"trending"}


def test_content_gives_new_items_similar_items_and_diversity() -> None:
    served = a_shop(shop.words())
    put(served, "diver-1", "Camera for divers")
    snapshot = put(served, "diver-2", "Another camera for divers")
    items, scores = similar_items(snapshot, N, 5, kind=SimilarityKind.CONTENT)
    assert items[0] == N + 1
    assert scores[0] > 0.999
    assert N in similar_items(snapshot, 3, 60, kind=SimilarityKind.CONTENT)[0]
    assert not len(similar_items(snapshot, N, 5, kind=SimilarityKind.CO_PURCHASE)[0])
    diverse = replace(PLAIN, diversity=1.0)
    assert served.ids("ann", 10, options=diverse) != served.ids("ann", 10)


def test_a_search_returns_few_new_items_and_only_similar_ones() -> None:
    known, late = np.eye(3, dtype=np.float32), np.zeros((60, 3), np.float32)
    late[::2, 0], late[1::2, 1] = 1.0, -1.0
    search = with_new_items(exact_search(known), late, 3)
    found = search(known[0], 50).tolist()
    assert found[0] == 0
    assert len(found) == len(known) + MAX_NEW_PER_SEARCH
    assert all(item % 2 == 1 for item in found[len(known) :])
    assert len(search(known[1], 50)) == len(known)


def test_a_new_item_is_recommended_before_the_next_training(
    settings: Settings, shop_api: Running
) -> None:
    """The control: a model without word vectors never recommends an item it was not trained on."""
    snapshots = shop_api.service.snapshots
    shop_api.feedback("bob", "camera-3")
    shop.publish_items(settings, [Item(item_id="diver-1", title="Camera for divers")])
    wait_until(lambda: snapshots.current.find("diver-1"))
    wait_until(lambda: shop_api.list_for("bob")["source"] == "personalised")

    def of_bob() -> dict[str, str]:
        return {row["item_id"]: row["source"] for row in shop_api.list_for("bob", n=200)["items"]}

    assert len(of_bob()) == N - 1
    assert "diver-1" not in of_bob()
    assert not shop_api.get("/similar-items", item_id="diver-1", by="content")["items"]

    shop.publish(settings, *shop.write(settings, "m2", words=shop.words()))
    wait_until(lambda: snapshots.current.loaded.version == "m2")
    shop.publish_items(settings, [Item(item_id="diver-2", title="Another camera for divers")])
    assert wait_until(lambda: of_bob().get("diver-2")) == "content"
    assert of_bob()["diver-1"] == "content"
    alike = shop_api.get("/similar-items", item_id="diver-1", by="content", n=3)["items"]
    assert alike[0]["item_id"] == "diver-2"
    near = shop_api.get("/similar-items", item_id="camera-3", by="content", n=60)["items"]
    assert {"diver-1", "diver-2"} <= {row["item_id"] for row in near}


def test_an_index_over_content_finds_what_exact_search_finds(tmp_path: Path) -> None:
    content = np.random.default_rng(1).normal(size=(400, 16)).astype(np.float32)
    content[::3] = 0.0
    described = np.asarray(content.any(axis=1))
    index = ann_index.build(content, described, "ivf")[0]
    index.nprobe = index.nlist
    ann_index.write(index, tmp_path, ann_index.CONTENT)
    indexed, exact = content_search(content, tmp_path / ann_index.CONTENT), content_search(content)
    for row in (1, 2, 50):
        found = indexed(content[row], 20)
        assert found.tolist() == exact(content[row], 20).tolist()
        assert content[found].any(axis=1).all()
    assert len(indexed(content[1], 1000)) == described.sum()


def test_only_many_described_items_get_an_index() -> None:
    few = np.ones((100, 4), np.float32)
    assert ann_index.of_content(few) is None
    assert ann_index.kind_of(ann_index.FLAT_BELOW) == "ivf"


def test_an_index_of_some_rows_finds_them_by_their_index(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    vectors = rng.normal(size=(3000, 13)).astype(np.float32)
    known = rng.random(3000) < 0.4
    vectors[~known, -1] = UNKNOWN_BIAS
    index = ann_index.build(vectors, known, "ivf")[0]
    index.nprobe = index.nlist
    ann_index.write(index, tmp_path, ann_index.TOWERS)
    search = index_search(tmp_path / ann_index.TOWERS, vectors, known)
    exact = index_search(tmp_path / "nowhere", vectors, known)
    for query in np.c_[rng.normal(size=(20, 12)), np.ones(20)].astype(np.float32):
        found, best = search(query, 50), exact(query, 50)
        assert known[found].all()
        np.testing.assert_allclose(vectors[found] @ query, vectors[best] @ query, atol=0.01)


def test_an_index_of_other_rows_is_not_used(tmp_path: Path) -> None:
    vectors = np.random.default_rng(7).normal(size=(2000, 8)).astype(np.float32)
    ann_index.write(ann_index.build(vectors, kind="ivf")[0], tmp_path)
    known = np.arange(2000) < 1000
    found = index_search(tmp_path / ann_index.FILE, vectors, known)(vectors[1500], 1000)
    assert sorted(found.tolist()) == list(range(1000))


def test_a_mapped_index_finds_what_one_in_memory_finds(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(2000, 16)).astype(np.float32)
    for kind in ("ivf", "flat", "hnsw"):
        ann_index.write(ann_index.build(vectors, kind=kind)[0], tmp_path, kind)
        searches = [index_search(tmp_path / kind, vectors, mapped=m) for m in (False, True)]
        for query in rng.normal(size=(20, 16)).astype(np.float32):
            in_memory, mapped = (search(query, 30) for search in searches)
            assert in_memory.tolist() == mapped.tolist()

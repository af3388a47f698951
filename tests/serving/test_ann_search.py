"""Items that came after the model are known by their words, at once and without a training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from afterclick.api import SimilarityKind
from afterclick.arrays import FloatArray
from afterclick.events import Item
from afterclick.model import WordVectors
from afterclick.retrieval import SOURCES, Searches, candidate_items, exact_search
from afterclick.settings import Settings
from afterclick.user_vectors import UserVectors
from serving.request import PLAIN
from serving.state.ann_search import MAX_NEW_PER_SEARCH, with_new_items
from serving.state.snapshot import ServingSnapshot
from serving.tiers import similar_items
from tests.scoring.examples import a_state
from tests.serving import shop
from tests.serving.offline import Offline
from tests.serving.running import Running
from tests.waiting import wait_until

N = len(shop.item_ids())
LIKED = {"ann": ["camera-3"], "new": ["diver-1"], "bare": ["bare-1"]}


@dataclass(frozen=True, eq=False)
class Listening(WordVectors):
    """Remembers the texts it was asked for."""

    texts: list[str] = field(default_factory=list)

    def vector(self, text: str) -> FloatArray:
        self.texts.append(text)
        return super().vector(text)


def a_shop(words: WordVectors | None) -> Offline:
    return Offline(liked=LIKED, model=replace(shop.model("m1"), words=words))


def put(served: Offline, item_id: str, title: str | None, *categories: str) -> ServingSnapshot:
    """The world once the item is in the catalogue."""
    served.catalogue.put(Item(item_id=item_id, title=title, categories=categories))
    served.snapshots.current = served.snapshots.build()
    return served.snapshot


def test_each_text_is_read_once_and_again_where_it_changes() -> None:
    words = Listening(shop.words().words, shop.words().vectors)
    served = a_shop(words)
    assert not words.texts
    put(served, "diver-1", "Camera for divers")
    world = put(served, "diver-2", "Cable for divers", "Cables")
    assert words.texts == ["Camera for divers", "Cable for divers. Cables"]
    assert world.content is not None
    np.testing.assert_allclose(world.content.new[:, :2], np.eye(2))

    served.catalogue.put(
        Item(item_id="diver-2", title="Cable for divers", categories=("Cables",), price=9.0)
    )
    again = put(served, "camera-3", "Known to the model, whatever it is called now")
    assert again.generation != world.generation
    assert again.content is world.content
    assert again.content_search is world.content_search

    renamed = put(served, "diver-1", "A cable after all")
    assert words.texts[2:] == ["A cable after all"]
    assert renamed.content is not None
    assert renamed.content.new[:, 1].tolist() == [1.0, 1.0]
    assert world.content.new[0, 0] == 1.0  # who still looks at the old world sees the old vectors
    served.catalogue.remove("diver-1")
    served.snapshots.current = served.snapshots.build()
    assert served.snapshot.content is not None
    assert not served.snapshot.content.new[0].any()


def test_without_words_in_the_model_or_in_the_title_nothing_is_searched_for() -> None:
    for words, title in (
        (None, "Camera for divers"),
        (shop.words(), None),
        (shop.words(), "Snorkel"),
    ):
        served = a_shop(words)
        world = put(served, "diver-1", title)
        assert world.content_search is world.loaded.content_search
        assert "diver-1" not in served.ids("ann", 100)
        assert not len(similar_items(world, N, 10, kind=SimilarityKind.CONTENT)[0])


def test_another_model_reads_with_its_own_words() -> None:
    served = a_shop(shop.words())
    put(served, "diver-1", "Camera for divers")
    other = replace(shop.model("m2"), words=WordVectors(np.array(["divers"]), np.eye(2, 8)[1:]))
    served.snapshots.use(replace(served.snapshot.loaded, version="m2", model=other))
    served.snapshots.current = served.snapshots.build()
    assert served.snapshot.content is not None
    assert served.snapshot.content.new[0, :2].tolist() == [0.0, 1.0]


def test_a_new_item_is_a_candidate_by_its_content() -> None:
    served = a_shop(shop.words())
    world = put(served, "diver-1", "Camera for divers")
    assert world.loaded.model is not None
    camera, cable = a_state([3]), a_state([shop.PER_KIND])
    found = [
        candidate_items(
            world.loaded.model,
            UserVectors.of(world.loaded.model, state),
            world.view.top,
            Searches(content=world.content_search, item_content=world.content),
        )
        for state in (camera, cable)
    ]
    assert [SOURCES[source] for source in found[0].sources[found[0].items == N]] == ["content"]
    assert N not in found[1].items


def test_the_list_of_who_liked_what_is_alike_has_the_new_item_and_says_why() -> None:
    served = a_shop(shop.words())
    put(served, "diver-1", "Camera for divers")
    rows = {row["item_id"]: row for row in served.items("ann", 100, explain=True)}
    assert rows["diver-1"]["source"] == "content"
    assert rows["diver-1"]["reason"] == "because you liked The camera-3"
    assert rows["diver-1"]["contributions"]["content"] > 0
    assert rows["diver-1"]["attributions"][0]["item_id"] == "camera-3"


def test_who_liked_a_new_item_gets_what_is_like_it() -> None:
    served = a_shop(shop.words())
    put(served, "diver-1", "Camera for divers")
    put(served, "bare-1", None)
    rows = served.items("new", 10)
    assert {row["item_id"].split("-")[0] for row in rows} == {"camera"}
    assert rows[0]["reason"] == "because you liked Camera for divers"
    assert {row["source"] for row in served.items("bare", 10)} == {"trending"}


def test_new_items_are_alike_by_content_and_diverse_by_it() -> None:
    served = a_shop(shop.words())
    put(served, "diver-1", "Camera for divers")
    world = put(served, "diver-2", "Another camera for divers")
    items, scores = similar_items(world, N, 5, kind=SimilarityKind.CONTENT)
    assert items[0] == N + 1
    assert scores[0] > 0.999
    assert N in similar_items(world, 3, 60, kind=SimilarityKind.CONTENT)[0]
    assert not len(similar_items(world, N, 5, kind=SimilarityKind.CO_PURCHASE)[0])
    diverse = replace(PLAIN, diversity=1.0)
    assert served.ids("ann", 10, options=diverse) != served.ids("ann", 10)


def test_a_search_brings_few_late_items_and_none_that_is_not_alike() -> None:
    known, late = np.eye(3, dtype=np.float32), np.zeros((60, 3), np.float32)
    late[::2, 0], late[1::2, 1] = 1.0, -1.0
    search = with_new_items(exact_search(known), late, 3)
    found = search(known[0], 50).tolist()
    assert found[0] == 0
    assert len(found) == len(known) + MAX_NEW_PER_SEARCH
    assert all(item % 2 == 1 for item in found[len(known) :])
    assert len(search(known[1], 50)) == len(known)


def test_a_new_item_is_listed_before_any_training_has_seen_it(
    settings: Settings, shop_api: Running
) -> None:
    """The control: a model without words never brings what it has not been trained on."""
    snapshots = shop_api.service.snapshots
    shop_api.tell("bob", "camera-3")
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

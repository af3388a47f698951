"""What changed between two lists."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ui.changes import because, compare

lists = st.lists(st.sampled_from([f"i{n}" for n in range(20)]), unique=True, max_size=12)


def test_a_card_that_climbs_says_by_how_many_places() -> None:
    change = compare(["a", "b", "c"], ["c", "a", "d"])
    assert change.moved == {"c": 2, "a": -1}
    assert change.entered == ("d",)
    assert change.left == ("b",)
    assert change.summary() == "1 new, 1 up, 1 down, 1 gone"


def test_an_unchanged_list_is_quiet() -> None:
    change = compare(["a", "b"], ["a", "b"])
    assert change.quiet
    assert change.summary() == "same order"


@given(lists, lists)
def test_every_card_is_told_apart_as_moved_new_or_gone(before: list[str], after: list[str]) -> None:
    change = compare(before, after)
    assert set(change.moved) == set(before) & set(after)
    assert set(change.entered) == set(after) - set(before)
    assert set(change.left) == set(before) - set(after)
    assert all(
        before.index(item) - after.index(item) == places for item, places in change.moved.items()
    )


def test_the_cause_names_the_deed_and_the_item() -> None:
    assert because("like", "Kestrel Tripod") == "you liked Kestrel Tripod"
    assert because("skip", None) == "you skipped"

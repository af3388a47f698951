"""What changed between two lists, and how to say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

VERBS = {
    "view": "viewed",
    "click": "opened",
    "like": "liked",
    "basket": "put in your basket",
    "purchase": "bought",
    "skip": "skipped",
    "review": "reviewed",
    "undo": "took back",
}


@dataclass(frozen=True)
class ListChange:
    """Places gained per item that stayed (negative: lost), and who came and went."""

    moved: dict[str, int]
    entered: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def quiet(self) -> bool:
        """Nothing moved."""
        return not (self.entered or self.left or any(self.moved.values()))

    def summary(self) -> str:
        """The change in a few words: `3 new, 2 up, 4 down`."""
        up = sum(places > 0 for places in self.moved.values())
        down = sum(places < 0 for places in self.moved.values())
        counts = ((len(self.entered), "new"), (up, "up"), (down, "down"), (len(self.left), "gone"))
        return ", ".join(f"{count} {word}" for count, word in counts if count) or "same order"


def compare(before: Sequence[str], after: Sequence[str]) -> ListChange:
    """How the ids in `before` became those in `after`."""
    old = {item_id: place for place, item_id in enumerate(before)}
    moved = {item_id: old[item_id] - place for place, item_id in enumerate(after) if item_id in old}
    return ListChange(
        moved=moved,
        entered=tuple(item_id for item_id in after if item_id not in old),
        left=tuple(item_id for item_id in before if item_id not in set(after)),
    )


def because(action: str | None, title: str | None) -> str:
    """The cause of a change: `you liked Canon EOS Rebel`."""
    verb = VERBS.get(action or "", "did something")
    return f"you {verb}" if not title else f"you {verb} {title}"

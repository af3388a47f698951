"""Words, numbers and pictures of items and users: cards, artwork, list changes, demo users.

reads   file  ui/demo_users.json
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, TypeAdapter

from afterclick.api import ItemRatings, ItemSummary, Recommendations, RecommendedItem
from afterclick.arrays import Json

CONTRIBUTION_NAMES = {
    "model": "model",
    "history": "your history",
    "trend": "trend",
    "content": "content",
    "popularity": "popularity",
    "base": "base score",
    "dislikes": "your dislikes",
    "rules": "shop rules",
    "diversity": "diversity",
    "exploration": "exploration",
}
SOURCE_NAMES = {
    "personalised": "For you",
    "session": "From this visit",
    "interests": "From your interests",
    "trending": "Trending now",
    "popular": "Popular",
    "als": "Users with similar taste",
    "tower": "Users with a similar history",
    "ncf": "Items of similar histories",
    "neighbours": "Chosen by the same users",
    "same_day": "Chosen on the same day",
    "content": "Similar description",
}
BADGE_NAMES = {"trending": "trending now", "new": "new"}
PERSONAL = ("personalised", "session")
"""List sources that the ranker orders for one user."""
CONFIDENCE_STEPS = (0.6, 0.7)
"""Probabilities from which an item has two dots, and three."""
VERBS = {
    "view": "viewed",
    "click": "opened",
    "like": "liked",
    "basket": "added to basket",
    "purchase": "bought",
    "skip": "skipped",
    "review": "reviewed",
    "undo": "undid",
}
_WIDTH, _HEIGHT = 320, 180


def title_of(item: ItemSummary) -> str:
    """The item's title, or its category and id if the catalogue has none."""
    if item.title:
        return item.title
    category = item.categories[-1] if item.categories else "Item"
    return f"{category} {item.item_id}"


def department_of(categories: Sequence[str]) -> str:
    """The second category of the path: the first is often the same for all items."""
    return categories[1] if len(categories) > 1 else "".join(categories) or "no department"


def item_url(item_id: str, user_id: str) -> str:
    """The address of an item's page. The id is a query parameter because it may contain a slash."""
    return "/item?" + urlencode({"id": item_id, "user": user_id})


def confidence(item: RecommendedItem, answer: Recommendations) -> Json:
    """How certain the rank of an item is: `dots` (0 to 3), `words`, and `what` they mean.

    The ranker learns a softmax: exp(score difference) are the odds that one item is chosen over
    the other. Reported is the probability against the last item of the list, at least 1/2.
    """
    if answer.source == "interests":
        return {
            "dots": 1,
            "words": "a guess",
            "what": "Based on your interests only, not on your actions.",
        }
    if answer.source not in PERSONAL:
        return {
            "dots": 0,
            "words": "not personal",
            "what": "All users see this list: it is not personal yet.",
        }
    share = 1 / (1 + math.exp(-max(item.score - answer.items[-1].score, 0.0)))
    return {
        "dots": 1 + sum(share >= step for step in CONFIDENCE_STEPS),
        "words": f"{share:.0%} sure",
        "what": "The ranker's probability that you choose this item before the last one of the "
        f"list: {share:.0%}. 50% means no difference.",
    }


def card(item: RecommendedItem, rank: int, scale: float, moved: int, entered: bool) -> Json:
    """One card. `scale` is the sum of contributions whose bar fills the width of the card."""
    return {
        "id": item.item_id,
        "rank": rank,
        "title": title_of(item),
        "untitled": not item.title,
        "category": " / ".join(item.categories[-2:]) or "Uncategorised",
        "hue": category_hue(item.categories),
        "art": artwork(item.item_id, item.categories),
        "ratings": ratings_text(item.ratings),
        "reason": item.reason,
        "source": SOURCE_NAMES.get(item.source, item.source),
        "score": round(item.score, 3),
        "contributions": [
            {
                "name": name,
                "label": CONTRIBUTION_NAMES.get(name, name),
                "value": round(value, 3),
                "width": round(100 * abs(value) / scale, 2),
            }
            for name, value in item.contributions.items()
            if value
        ],
        "badges": [BADGE_NAMES.get(badge, badge) for badge in item.badges],
        "moved": moved,
        "entered": entered,
    }


def ratings_text(ratings: ItemRatings | None) -> str:
    """The mean and number of ratings: `4.6 (203)`; empty without any."""
    return f"{ratings.mean:.1f} ({ratings.count:,})" if ratings else ""


def bar_scale(items: tuple[RecommendedItem, ...]) -> float:
    """The largest sum of absolute contributions in a list."""
    sums = (sum(abs(value) for value in item.contributions.values()) for item in items)
    return max(sums, default=0.0) or 1.0


@dataclass(frozen=True)
class ListChange:
    """Ranks gained per item that stayed (negative: lost), and the items that entered and left."""

    moved: dict[str, int]
    entered: tuple[str, ...]
    left: tuple[str, ...]

    def summary(self) -> str:
        """The change in a few words: `3 new, 2 up, 4 down`."""
        up = sum(ranks > 0 for ranks in self.moved.values())
        down = sum(ranks < 0 for ranks in self.moved.values())
        counts = ((len(self.entered), "new"), (up, "up"), (down, "down"), (len(self.left), "gone"))
        return ", ".join(f"{count} {word}" for count, word in counts if count) or "same order"


def compare_lists(before: Sequence[str], after: Sequence[str]) -> ListChange:
    """The change from the item ids `before` to those `after`."""
    old = {item_id: rank for rank, item_id in enumerate(before)}
    moved = {item_id: old[item_id] - rank for rank, item_id in enumerate(after) if item_id in old}
    return ListChange(
        moved=moved,
        entered=tuple(item_id for item_id in after if item_id not in old),
        left=tuple(item_id for item_id in before if item_id not in set(after)),
    )


def describe_cause(action: str | None, title: str | None) -> str:
    """The cause of a change: `you liked Canon EOS Rebel`."""
    verb = VERBS.get(action or "", "did something")
    return f"you {verb}" if not title else f"you {verb} {title}"


def category_hue(categories: Sequence[str]) -> int:
    """The hue of an item in degrees: that of its department, shifted by its own category."""
    if not categories:
        return 225
    department = categories[1] if len(categories) > 1 else categories[0]
    return (_digest(department)[0] * 360 // 256 + _digest(categories[-1])[3] % 90 - 45) % 360


def artwork(item_id: str, categories: Sequence[str]) -> str:
    """An SVG picture drawn from hashes only: stable, and without text of the catalogue."""
    hue = category_hue(categories)
    seed = _digest(item_id)
    end_hue = (hue + 24 + seed[0] % 40) % 360
    gradient = "g" + seed.hex()[:10]
    pattern = (_rings, _waves)[_digest("".join(categories[-1:]))[1] % 2]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="xMidYMid slice" '
        'aria-hidden="true">'
        f'<defs><linearGradient id="{gradient}" gradientTransform="rotate({seed[1] % 90})">'
        f'<stop offset="0" stop-color="oklch(0.72 0.13 {hue})"/>'
        f'<stop offset="1" stop-color="oklch(0.46 0.14 {end_hue})"/></linearGradient></defs>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="url(#{gradient})"/>'
        f'<g fill="none" stroke="#fff" stroke-width="2">{pattern(seed)}</g></svg>'
    )


def _rings(seed: bytes) -> str:
    x, y, step = 60 + seed[2] % 200, 30 + seed[3] % 120, 12 + seed[4] % 14
    return "".join(
        f'<circle cx="{x}" cy="{y}" r="{18 + n * step}" opacity="{0.5 - n * 0.06:.2f}"/>'
        for n in range(7)
    )


def _waves(seed: bytes) -> str:
    height = 12 + seed[2] % 30
    return "".join(
        f'<path opacity="{0.16 + n * 0.05:.2f}" '
        f'd="M{-20 - seed[3] % 90} {20 + n * 26} q 45 {-height} 90 0 t 90 0 t 90 0 t 90 0 t 90 0"/>'
        for n in range(7)
    )


def avatar(name: str) -> dict[str, str | int]:
    """Initials and hue of a user's avatar."""
    words = [word for word in name.replace("-", " ").replace("_", " ").split() if word]
    initials = "".join(word[0] for word in words[:2]).upper() or "?"
    return {"initials": initials, "hue": _digest(name)[2] * 360 // 256}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest()


class DemoUser(BaseModel):
    """A user to try the shop with. `tastes` are category names, broad to narrow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user_id: str
    name: str
    story: str
    tastes: tuple[str, ...]


_USERS = TypeAdapter(tuple[DemoUser, ...])


@cache
def demo_users() -> tuple[DemoUser, ...]:
    """All demo users."""
    return _USERS.validate_json(files("ui").joinpath("demo_users.json").read_bytes())


def demo_user(user_id: str) -> DemoUser | None:
    """The demo user with this id, or None."""
    return next((user for user in demo_users() if user.user_id == user_id), None)

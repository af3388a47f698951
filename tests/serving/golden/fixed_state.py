"""The fixed state behind the golden requests: a shop of 400 items, two models, trends, histories.

Plain data without product code: dicts, lists and NumPy arrays. `adapter.py` builds the product's
objects from it. Scores, counts and trends of items are pairwise different, because the order of
equal values would depend on the CPU (NumPy's partition).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

NOW_MS = 4_102_444_800_000
"""2100-01-01: the present of the snapshots, later than the clock of the requests."""
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
HALF_LIFE_DAYS = np.array([1 / 24, 1.0, 3.0, 7.0, 30.0, 90.0])
KINDS = ("camera", "cable", "lamp", "drone", "radio", "tripod", "lens", "battery")
WORDS = ("pro", "mini", "black", "steel", "travel", "studio", "budget", "classic", "smart", "wide")
BRANDS = ("Acme", "Borealis", "Corvid", "Dunlin")
N_ITEMS, N_OTHERS = 400, 5
IN_MODEL = {"m1": 380, "m2": 390}
"""Catalogue items that each model knows; later ones are new to it."""
NO_TRENDS = range(395, 400)
QUARANTINED = 17
DIM = 16

Array = NDArray[Any]
Json = dict[str, Any]


def item_id(number: int) -> str:
    """The id of a catalogue item."""
    return f"item-{number:03d}"


def kind_of(number: int) -> int:
    """The row of an item's kind in `KINDS`."""
    return number % len(KINDS)


@cache
def catalogue() -> list[Json]:
    """The items. Some have no title, categories, brand or price."""
    rng = np.random.default_rng(11)
    items = []
    for number in range(N_ITEMS):
        kind = KINDS[kind_of(number)]
        words = [WORDS[row] for row in rng.choice(len(WORDS), 2, replace=False)]
        leaf = f"{kind.title()}s"
        categories = ["Electronics", leaf] if number % 3 else ["Electronics", "Photo", leaf]
        if number in (5, 130, 390):
            categories.append("Rare")
        if number == 399:
            categories.append("Solo")
        items.append(
            {
                "id": item_id(number),
                "title": None if number % 53 == 7 else f"{words[0]} {kind} {words[1]} {number}",
                "categories": [] if number % 41 == 3 else categories,
                "brand": None if number % 17 == 2 else BRANDS[int(rng.integers(len(BRANDS)))],
                "price": None if number % 19 == 4 else round(float(rng.gamma(2.0, 40.0)) + 1, 2),
            }
        )
    items[396]["title"] = "zzz unknown vocabulary"
    return items


@cache
def centres() -> Array:
    """(kinds + words, DIM) directions of kinds and words, of length 1."""
    made = np.random.default_rng(12).normal(size=(len(KINDS) + len(WORDS), DIM))
    return np.asarray(made / np.sqrt((made**2).sum(axis=1, keepdims=True)))


def word_vectors() -> tuple[Array, Array]:
    """The words of titles and categories, and what each adds to a content vector."""
    kinds, words = centres()[: len(KINDS)], centres()[len(KINDS) :]
    names = [*KINDS, *(f"{kind}s" for kind in KINDS), *WORDS]
    vectors = np.concatenate([kinds, 0.5 * kinds, 0.7 * words]).astype(np.float32)
    order = np.argsort(names)
    return np.array(names)[order], vectors[order]


@cache
def model(version: str) -> Json:
    """Every array of one model; the last five items of a model are not in the catalogue."""
    rng = np.random.default_rng({"m1": 21, "m2": 22}[version])
    known = IN_MODEL[version]
    ids = [item_id(number) for number in range(known)]
    ids += [f"gone-{version}-{number}" for number in range(N_OTHERS)]
    n, kinds = len(ids), np.array([kind_of(number) for number in range(len(ids))])
    taste = centres()[kinds] + 0.35 * rng.normal(size=(n, DIM)) / 2
    factors = (1.5 * (taste + 0.15 * rng.normal(size=(n, DIM)))).astype(np.float32)
    factors[[9, 100, 101]] = 0.0
    content = taste + 0.1 * rng.normal(size=(n, DIM))
    content /= np.sqrt((content**2).sum(axis=1, keepdims=True))
    content[[12, 100]] = 0.0
    first_seen = NOW_MS - DAY_MS * rng.uniform(40, 900, n)
    first_seen[rng.choice(n, 15, replace=False)] = NOW_MS - DAY_MS * rng.uniform(1, 29, 15)
    first_seen[[33, 77]] = np.nan
    neighbours = _neighbours(taste, rng, 30, 0.9, empty=(14, 100))
    same_day = _neighbours(taste, rng, 8, 0.5, empty=(15, 100))
    walks = _neighbours(taste, rng, 20, 0.7, empty=(16, 100))
    return {
        "version": version,
        "ids": np.array(ids),
        "popularity": (rng.permutation(n) + 3).astype(np.float32),
        "first_seen_ms": first_seen,
        "neighbours": neighbours,
        "same_day": same_day,
        "walks": walks,
        "factors": factors,
        "content": content.astype(np.float32),
        "als": (20.0, 0.08) if version == "m1" else (10.0, 0.2),
        **_towers(taste, rng),
    }


def _towers(taste: Array, rng: np.random.Generator) -> Json:
    n = len(taste)
    history = (taste + 0.1 * rng.normal(size=(n, DIM))).astype(np.float32)
    targets = np.concatenate([3.0 * taste, rng.normal(size=(n, 1))], axis=1).astype(np.float32)
    history[[20, 100]] = 0.0
    targets[[20, 100]] = 0.0
    targets[[20, 100], -1] = -100.0
    ages = np.linspace(1.0, 0.3, 7).astype(np.float32)
    return {"tower_history": history, "tower_targets": targets, "tower_ages": ages}


def _neighbours(
    taste: Array, rng: np.random.Generator, count: int, best: float, empty: tuple[int, ...]
) -> tuple[Array, Array]:
    """(n, count) items and scores, padded with -1; the items `empty` have none."""
    n = len(taste)
    near = taste @ taste.T + 0.3 * rng.normal(size=(n, n))
    np.fill_diagonal(near, -np.inf)
    items = np.argsort(-near, axis=1, kind="stable")[:, :count].astype(np.int32)
    scores = np.sort(rng.uniform(0.02, best, (n, count)), axis=1)[:, ::-1].astype(np.float32)
    lengths = rng.integers(count // 2, count + 1, n)
    lengths[list(empty)] = 0
    padding = np.arange(count) >= lengths[:, None]
    return np.where(padding, np.int32(-1), items), np.where(padding, np.float32(0), scores)


@cache
def trends() -> Json:
    """Decayed sums per half-life of all votes and of established users, and counts.

    New accounts vote more than usual by the half-life of a day, and push the item `QUARANTINED`.
    """
    rng = np.random.default_rng(31)
    ids = [item_id(number) for number in range(N_ITEMS) if number not in NO_TRENDS]
    ids += ["gone-m1-0", "ghost"]
    n = len(ids)
    daily = np.exp(rng.normal(0.0, 1.0, n))[:, None]
    noise = np.exp(rng.normal(0.0, 0.25, (n, len(HALF_LIFE_DAYS))))
    votes = daily * HALF_LIFE_DAYS / np.log(2) * noise
    hot = rng.choice(n, 9, replace=False)
    votes[hot, 0] *= 60.0
    share = np.array([0.6, 0.25, 0.6, 0.6, 0.6, 0.6]) * rng.uniform(0.9, 1.1, votes.shape)
    established = votes * share
    votes[QUARANTINED, 1:] *= 40.0
    votes[QUARANTINED, 1:] += 500.0
    times = NOW_MS - HOUR_MS * rng.uniform(0.0, 48.0, n)
    times[hot] = NOW_MS - HOUR_MS * rng.uniform(0.0, 0.5, len(hot))
    times[2] = NOW_MS
    counts = rng.permutation(n) * 3 + 5
    sums = np.concatenate([votes, established], axis=1)
    return {"ids": ids, "times_ms": times, "sums": sums, "counts": counts.astype(np.int64)}


def _event(item: str, action: str, hours_ago: float, rating: float | None = None) -> Json:
    return {"item": item, "action": action, "hours_ago": hours_ago, "rating": rating}


@cache
def histories() -> dict[str, list[Json]]:
    """User → events, the newest first."""
    rng = np.random.default_rng(41)
    made: dict[str, list[Json]] = {}
    sizes = [int(rng.integers(40, 91)) for _ in range(12)]
    sizes += [int(rng.integers(8, 21)) for _ in range(18)]
    sizes += [int(rng.integers(1, 5)) for _ in range(14)]
    for user, size in enumerate(sizes):
        made[f"u{user:02d}"] = _random_history(rng, size)
    made |= _special_histories()
    for session in range(10):
        made[f"session:s{session}"] = _random_history(rng, session // 2) if session else []
    return made


def _random_history(rng: np.random.Generator, size: int) -> list[Json]:
    """Events mostly of two kinds of items, with skips, undone events and repeated items."""
    kinds = rng.choice(len(KINDS), 2, replace=False)
    actions = ("view", "click", "like", "basket", "purchase", "review", "skip", "undo")
    chances = (0.2, 0.25, 0.15, 0.1, 0.1, 0.08, 0.08, 0.04)
    hours = np.sort(rng.exponential(6.0 * (1 + 200 * (rng.random() < 0.3)), size).cumsum())
    events: list[Json] = []
    for at in hours.round(3).tolist():
        kind = kinds[int(rng.random() < 0.3)] if rng.random() < 0.85 else rng.integers(len(KINDS))
        item = int(kind) + len(KINDS) * int(rng.integers(N_ITEMS // len(KINDS)))
        action = str(rng.choice(actions, p=chances))
        if action == "undo" and events:
            item = int(str(events[-1]["item"]).removeprefix("item-"))
        rating = float(rng.integers(1, 6)) if action == "review" else None
        events.append(_event(item_id(item), action, at, rating))
    return events


def _special_histories() -> dict[str, list[Json]]:
    """The corner cases, by user."""
    cameras = [number for number in range(N_ITEMS) if kind_of(number) == 0]
    five = [item_id(number) for number in (0, 8, 17, 26, 40)]
    return {
        "only-skips": [_event(item, "skip", 2.0 + at) for at, item in enumerate(five)],
        "all-undone": [_event("item-010", "undo", 1.0), _event("item-010", "purchase", 2.0)],
        "only-unknown": [_event("no-such-item", "like", 1.0), _event("another", "view", 3.0)],
        "only-new": [_event(item_id(n), "click", 1.0 + n - 380) for n in (381, 388, 392)],
        "one-view": [_event("item-044", "view", 0.0)],
        "not-in-als": [_event("item-009", "like", 5.0)],
        "in-no-array": [_event("item-100", "purchase", 30.0)],
        "saw-all-cameras": [_event(item_id(n), "view", 1.0 + n) for n in cameras],
        "saw-everything": [
            *(_event(item_id(n), "view", 1.0 + n) for n in range(N_ITEMS)),
            *(_event(f"gone-{v}-{n}", "view", 500.0 + n) for v in ("m1", "m2") for n in range(5)),
            _event("ghost", "view", 600.0),
        ],
        "newest-undescribed": [_event("item-396", "like", 0.5), _event("item-050", "like", 9.0)],
        "newest-ghost": [_event("ghost", "like", 0.5), _event("item-012", "like", 9.0)],
        "buyer": [_event(item, "purchase", 24.0 * (1 + at)) for at, item in enumerate(five)],
        "critic": [_event(item, "review", 9.0 + at, 1.0 + at) for at, item in enumerate(five)],
        "liked-then-skipped": [_event("item-016", "skip", 1.0), _event("item-016", "like", 2.0)],
        "skipped-then-liked": [_event("item-016", "like", 1.0), _event("item-016", "skip", 2.0)],
        "undone-and-again": [
            _event("item-024", "like", 1.0),
            _event("item-024", "undo", 2.0),
            _event("item-024", "like", 3.0),
            _event("item-033", "click", 4.0),
        ],
        "newest-not-in-catalogue": [
            _event("gone-m1-1", "basket", 1.0),
            _event("item-003", "view", 2),
        ],
        "years-ago": [_event(item, "like", 24.0 * 800 + at) for at, item in enumerate(five)],
        "quarantined-fan": [_event("item-017", "like", 1.0), _event("item-025", "like", 5.0)],
        "same-day-only": [_event("item-014", "like", 1.0)],
    }


SAVED_INTERESTS = {"new-1": ("Lamps", "item-020"), "only-skips": ("Drones",)}
"""Interests that users have named before."""


def _rule(action: str, *query: str, **more: Any) -> Json:
    return {"action": action, "query": list(query), **more}


RULES: dict[str, list[Json]] = {
    "none": [],
    "boost": [_rule("boost", "brand:Acme", amount=2.5)],
    "boost-category": [
        _rule("boost", "category:Lamps"),
        _rule("boost", "category:Rare", amount=4.0),
    ],
    "bury": [_rule("bury", "brand:Corvid", amount=3.0), _rule("bury", "title:pro")],
    "cancelling": [
        _rule("boost", "brand:Acme", amount=2.0),
        _rule("bury", "brand:Acme", amount=2.0),
        _rule("boost", "item:item-002", amount=1.5),
    ],
    "exclude": [_rule("exclude", "category:Cables"), _rule("exclude", "price:..30")],
    "exclude-all": [_rule("exclude", "category:Electronics")],
    "pin": [_rule("pin", "item:item-150", position=2)],
    "pin-new": [_rule("pin", "item:item-398"), _rule("pin", "item:item-385", position=4)],
    "pin-many": [
        _rule("pin", "category:Drones", position=3),
        _rule("pin", "item:item-004", "item:item-011", position=3),
        _rule("pin", "item:item-011", position=1),
        _rule("pin", "item:item-019", position=15),
        _rule("pin", "item:not-there", position=5),
    ],
    "mixed": [
        _rule("boost", "brand:Borealis", "category:Lenss", amount=1.2),
        _rule("bury", "price:100..", amount=0.7),
        _rule("exclude", "title:budget"),
        _rule("pin", "item:item-042", position=1),
        _rule("pin", "item:item-380", position=6),
        _rule("boost", "item:item-395", amount=9.0),
    ],
    "excluded-pin": [_rule("pin", "item:item-042", position=1), _rule("exclude", "item:item-042")],
    "dated": [
        _rule("boost", "brand:Dunlin", amount=5.0, ends="2001-01-01T00:00:00Z"),
        _rule("exclude", "brand:Acme", starts="2999-01-01T00:00:00Z"),
        _rule("boost", "brand:Corvid", starts="2001-01-01T00:00:00Z", ends="2999-01-01T00:00:00Z"),
    ],
    "expired": [_rule("exclude", "brand:Acme", ends="2001-01-01T00:00:00Z")],
}
"""Business rules by the name of the set; those of one set are in force together."""

EXPERIMENTS: list[Json] = [
    {
        "name": "ranking",
        "salt": "golden-1",
        "traffic": 0.6,
        "arms": [
            {"name": "control"},
            {"name": "als", "policy": "als", "share": 0.5},
            {"name": "curious", "explore": 0.3, "sampling": "softmax"},
            {"name": "newer", "model": "m2"},
        ],
    },
    {
        "name": "rerank",
        "salt": "golden-2",
        "traffic": 0.9,
        "arms": [
            {"name": "control"},
            {"name": "diverse", "diversity": 0.4},
            {"name": "weighted", "weights": {"trend": 2.0, "content": 0.25, "base": 0.5}},
            {"name": "absent", "model": "m9"},
            {"name": "trending", "policy": "trending"},
        ],
    },
]
"""Running experiments, the oldest first."""

"""The 500 golden requests, as plain JSON independent of the API's field names.

Each has a `kind` (for the count), a `list` (recommend, similar, popular, latest), the `snapshot`
and the `rules` that serve it, and what it asks for. A missing field means the default.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from random import Random
from typing import Any

from tests.serving.golden.fixed_state import RULES, histories, item_id

Spec = dict[str, Any]
COUNT = 500
CATEGORIES = ("Cameras", "cables", "LAMPS", "Photo", "Rare", "Solo", "Electronics", "No such")
FILTERS: tuple[list[str], ...] = (
    ["brand:Acme"],
    ["brand:acme", "brand:Dunlin"],
    ["price:20..60"],
    ["price:200.."],
    ["price:..5"],
    ["title:pro"],
    ["title:Camera black"],
    ["category:Lamps", "category:Drones", "price:..80"],
    ["brand:Borealis", "category:Radios", "title:mini", "title:travel"],
    ["item:item-001", "item:item-398", "item:ghost", "item:nowhere"],
    ["category:Rare", "brand:Acme"],
    ["brand:Nobody"],
)
POLICIES = ("blend", "als", "towers", "popular", "trending")
USERS = tuple(user for user in histories() if not user.startswith("session:"))
SESSIONS = tuple(user for user in histories() if user.startswith("session:"))
EXPERIMENT_USERS = (
    "u00 u12 u01 u14 not-in-als u02 u07 buyer u04 u13 u05 u21 u11 u19 u24 u17 only-new u23 u26 u36 "
    "undone-and-again only-skips"
)
"""Users in every arm of both experiments, and in none."""
VARIANTS = ("trees", "formula")


def requests() -> list[Spec]:
    """All requests, in a fixed order."""
    made = [
        *_users(), *_sessions(), *_baskets(), *_exclusions(), *_interests(), *_categories(),
        *_filters(), *_rules(), *_offsets(), *_cursors(), *_exploration(), *_diversity(),
        *_weights(), *_policies(), *_experiments(), *_degraded(), *_cached(), *_positions(),
        *_explained(), *_similar(), *_popular(), *_latest(),
    ]  # fmt: skip
    return [*made, *_combined(COUNT - len(made))]


def _spec(kind: str, **asked: Any) -> Spec:
    return {
        "kind": kind,
        "list": "recommend",
        "snapshot": "trees",
        "rules": "none",
        "n": 10,
    } | asked


def _some(names: tuple[str, ...], count: int, start: int = 0, step: int = 7) -> Iterator[str]:
    """`count` of the names, spread over all of them."""
    return (names[(start + step * at) % len(names)] for at in range(count))


def _users() -> Iterator[Spec]:
    for user, snapshot in zip((*USERS[:44:2], *USERS[44:]), cycle(VARIANTS), strict=False):
        yield _spec("user", user=user, snapshot=snapshot)
    for user in ("new-0", "new-1", ""):
        yield _spec("user", user=user)
    for user, n in zip(_some(USERS, 5), (1, 3, 25, 60, 200), strict=True):
        yield _spec("user", user=user, n=n)


def _sessions() -> Iterator[Spec]:
    for session, snapshot in zip(SESSIONS, cycle(VARIANTS), strict=False):
        yield _spec("session", user=session, snapshot=snapshot)
    for session in SESSIONS[::3]:
        yield _spec("session", user=session, items=["item-077", "item-070"])


def _baskets() -> Iterator[Spec]:
    baskets = (
        ["item-001"],
        ["item-381"],
        ["item-012", "item-100", "ghost"],
        ["nowhere"],
        ["item-396"],
    )
    for basket in baskets:
        yield _spec("basket", user="", items=basket)
        yield _spec("basket", user="session:s0", items=[*basket, "item-205", "item-011"], n=6)
    yield _spec("basket", user="u01", items=[item_id(n) for n in range(0, 60, 2)])
    yield _spec("basket", user="", items=["item-018", "item-018", "item-026"])


def _exclusions() -> Iterator[Spec]:
    hot = [item_id(n) for n in range(0, 380, 3)]
    for user, snapshot in zip(_some(USERS, 8), cycle(VARIANTS), strict=False):
        yield _spec("exclude", user=user, exclude=hot, snapshot=snapshot)
    everything = [item_id(n) for n in range(400)]
    yield _spec("exclude", user="u02", exclude=everything)
    yield _spec("exclude", user="", exclude=everything)
    yield _spec("exclude", user="", exclude=[*everything, "ghost", "gone-m1-0"])
    yield _spec("exclude", user="u40", exclude=["nowhere", "item-380"])
    for policy in POLICIES[1:]:
        yield _spec("exclude", user="u13", exclude=hot, policy=policy)


def _interests() -> Iterator[Spec]:
    named = (["Cameras"], ["lamps", "item-020"], ["item-385"], ["item-396"], ["item-100"], ["Rare"])
    for interests in (
        *named,
        ["Nothing", "no-item"],
        ["Cables", "Cameras", "item-001", "item-002"],
    ):
        yield _spec("interests", user="new-0", interests=interests)
    for interests in named[::2]:
        yield _spec("interests", user="", interests=interests, n=70, snapshot="no_model")
    yield _spec("interests", user="u20", interests=["Lamps"])
    yield _spec("interests", user="only-skips", interests=["Lamps"])
    yield _spec("interests", user="new-1")
    yield _spec("interests", user="new-0", interests=["Rare"], rules="mixed")
    yield _spec("interests", user="new-0", interests=["item-020"], rules="pin-many", page=2)
    yield _spec(
        "interests", user="new-0", interests=["Drones"], category="Photo", exclude=["item-003"]
    )
    yield _spec("interests", user="new-0", interests=["Solo"], snapshot="catalogue_only", n=1)


def _categories() -> Iterator[Spec]:
    for category in CATEGORIES:
        yield _spec("category", user="u03", category=category)
        yield _spec("category", user="", category=category)
    for category in CATEGORIES[1::2]:
        yield _spec("category", user="u33", category=category, snapshot="formula", n=30)
    for policy in POLICIES[1:]:
        yield _spec("category", user="u10", category="Photo", policy=policy)
    yield _spec("category", user="saw-all-cameras", category="Cameras")
    yield _spec("category", user="u34", category="Electronics", n=200)
    yield _spec("category", user="u39", category="Electronics", n=200, overloaded=True)
    yield _spec("category", user="saw-all-cameras", category="Cameras", policy="popular")


def _filters() -> Iterator[Spec]:
    for user, filters in zip(_some(USERS, len(FILTERS)), FILTERS, strict=True):
        yield _spec("filters", user=user, filters=filters)
    for filters in FILTERS[::2]:
        yield _spec("filters", user="", filters=filters, category="Photo")
    for policy in POLICIES[1:]:
        yield _spec("filters", user="u14", filters=FILTERS[0], policy=policy)


def _rules() -> Iterator[Spec]:
    for name, user in zip(RULES, _some(USERS, len(RULES), 3), strict=True):
        if name == "none":
            continue
        yield _spec("rules", user=user, rules=name)
        yield _spec("rules", user="", rules=name)
    for name in ("boost", "bury", "pin-new", "pin-many", "mixed", "dated"):
        yield _spec("rules", user="u21", rules=name, snapshot="formula", n=20)
    for policy in POLICIES[1:]:
        yield _spec("rules", user="u05", rules="mixed", policy=policy)
    yield _spec("rules", user="u05", rules="mixed", category="Rare")
    yield _spec("rules", user="u05", rules="pin-many", exclude=["item-011", "item-003"])
    yield _spec("rules", user="saw-everything", rules="pin")
    yield _spec("rules", user="", rules="boost", snapshot="no_model")
    yield _spec("rules", user="", rules="pin-new", snapshot="catalogue_only")


def _offsets() -> Iterator[Spec]:
    for user, offset in zip(_some(USERS, 7, 5), (1, 5, 10, 40, 150, 390, 1000), strict=True):
        yield _spec("offset", user=user, offset=offset)
        yield _spec("offset", user="", offset=offset, n=5, snapshot="formula")
    yield _spec("offset", user="u08", offset=3, rules="pin-many")
    yield _spec("offset", user="u08", offset=8, policy="towers")
    yield _spec("offset", user="u08", offset=4, explore=0.5, seed=3)


def _cursors() -> Iterator[Spec]:
    for user, page in zip(_some(USERS, 9, 2), (1, 2, 3, 4, 5, 6, 8, 12, 20), strict=True):
        yield _spec("cursor", user=user, page=page)
    for page in (1, 2, 5, 9):
        yield _spec("cursor", user="", page=page, snapshot="formula", n=50)
    for policy in POLICIES[1:]:
        yield _spec("cursor", user="u17", page=3, policy=policy)
        yield _spec("cursor", user="u17", page=8, policy=policy, n=60)
    yield _spec("cursor", user="u07", page=2, category="Rare", n=2)
    yield _spec("cursor", user="u07", page=3, category="Photo", n=40)
    yield _spec("cursor", user="u07", page=3, rules="pin-many")
    yield _spec("cursor", user="u07", page=2, rules="mixed", n=4)
    yield _spec("cursor", user="u07", page=2, offset=5)
    yield _spec("cursor", user="u07", page=3, explore=0.4, seed=5)
    yield _spec("cursor", user="u07", page=3, diversity=0.5)
    yield _spec("cursor", user="", page=3, interests=["Lamps"])
    yield _spec("cursor", user="u09", shown=["item-001", "nowhere", "ghost", "item-385"])
    yield _spec("cursor", user="", shown=[item_id(n) for n in range(400)])
    yield _spec("cursor", user="u09", page=1, n=200, shown=[item_id(n) for n in range(150)])
    yield _spec("cursor", user="u09", n=3, shown=[f"x-{n}" for n in range(998)])


def _exploration() -> Iterator[Spec]:
    for seed, user in enumerate(_some(USERS, 10, 1)):
        sampling = ("uniform", "softmax")[seed % 2]
        explore = (0.1, 0.3, 0.7, 1.0)[seed % 4]
        yield _spec("exploration", user=user, explore=explore, sampling=sampling, seed=seed)
    for seed, snapshot in enumerate(("formula", "no_model", "plain_model")):
        yield _spec("exploration", user="u22", explore=0.6, seed=40 + seed, snapshot=snapshot)
    for seed, snapshot in enumerate(("catalogue_only", "empty")):
        yield _spec("exploration", user="", explore=0.6, seed=43 + seed, snapshot=snapshot)
    for seed, policy in enumerate(POLICIES[1:]):
        yield _spec("exploration", user="u22", explore=0.5, seed=50 + seed, policy=policy)
    yield _spec(
        "exploration", user="u22", explore=0.5, seed=60, rules="pin-many", sampling="softmax"
    )
    yield _spec("exploration", user="u22", explore=1.0, seed=61, category="Rare")
    yield _spec("exploration", user="", explore=0.5, seed=62, interests=["Cables"])


def _diversity() -> Iterator[Spec]:
    for user, diversity in zip(_some(USERS, 8, 4), cycle((0.1, 0.4, 0.8, 1.0)), strict=False):
        yield _spec("diversity", user=user, diversity=diversity)
    for snapshot in ("formula", "no_model", "plain_model", "factors_only", "empty"):
        yield _spec("diversity", user="u25", diversity=0.6, snapshot=snapshot)
    for policy in POLICIES[1:]:
        yield _spec("diversity", user="u25", diversity=0.3, policy=policy)
    yield _spec(
        "diversity", user="u25", diversity=0.5, rules="mixed", explore=0.4, seed=8, offset=2
    )


def _weights() -> Iterator[Spec]:
    weights: tuple[dict[str, float], ...] = (
        {"trend": 3.0},
        {"content": 0.0, "model": 2.0},
        {"history": 0.1},
        {"base": 0.0},
        {"popularity": 2.0},
    )
    for given, user in zip(weights, _some(USERS, len(weights), 6), strict=True):
        yield _spec("weights", user=user, weights=given)
        yield _spec("weights", user="", weights=given, rules="boost")


def _policies() -> Iterator[Spec]:
    chosen = ("u00", "u16", "only-new", "not-in-als", "session:s7")
    for policy in POLICIES:
        for user in chosen:
            yield _spec(
                "policy", user=user, policy=policy, snapshot="formula" if user == "u16" else "trees"
            )
    for policy in ("als", "popular", "trending"):
        yield _spec("policy", user="saw-everything", policy=policy)
        for snapshot in ("plain_model", "no_model"):
            yield _spec("policy", user="u18", policy=policy, snapshot=snapshot)
        yield _spec("policy", user="only-skips", policy=policy, snapshot="catalogue_only")
    yield _spec("policy", user="u18", model="m2")
    yield _spec("policy", user="u18", model="m9")
    yield _spec("policy", user="u18", model="m2", policy="als", rules="mixed")


def _experiments() -> Iterator[Spec]:
    for user in (*EXPERIMENT_USERS.split(), "", "new-0", "session:s4", "session:s7"):
        yield _spec("experiment", user=user, experiments=True, seed=17)
    yield _spec("experiment", user="u00", experiments=True, policy="popular")


def _degraded() -> Iterator[Spec]:
    for user in ("u00", "u30", "session:s8", "new-1"):
        yield _spec("store down", user=user, store="down")
        yield _spec("store down", user=user, store="down", items=["item-045"], explain=True)
    yield _spec("store down", user="u00", store="down", interests=["Cameras"], rules="pin")
    for user in ("u00", "u30", "only-skips", "saw-everything", ""):
        yield _spec("no model", user=user, snapshot="no_model")
    for user in ("only-skips", "only-unknown"):
        yield _spec("no model", user=user, snapshot="no_model", store="down", interests=["Lamps"])
        yield _spec("no model", user=user, snapshot="catalogue_only")
        yield _spec("no model", user=user, snapshot="empty", page=1)
    yield _spec("no model", user="", snapshot="catalogue_only", page=2)
    yield _spec("no model", user="saw-everything", snapshot="catalogue_only")
    for user in _some(USERS, 8, 9):
        yield _spec("overloaded", user=user, overloaded=True)
    yield _spec("overloaded", user="", items=["item-030"], overloaded=True, snapshot="formula")
    yield _spec("overloaded", user="", overloaded=True)
    yield _spec("overloaded", user="u11", overloaded=True, never_shed=True)
    yield _spec("overloaded", user="u11", overloaded=True, policy="als")
    yield _spec("overloaded", user="u11", overloaded=True, category="Lamps", explain=True)
    yield _spec("overloaded", user="u11", overloaded=True, n=150)
    for snapshot in ("plain_model", "factors_only"):
        yield _spec("fewer arrays", user="u06", snapshot=snapshot, explain=True)
        yield _spec("fewer arrays", user="newest-undescribed", snapshot=snapshot)
    yield _spec("quarantine", user="quarantined-fan", snapshot="approved")
    yield _spec("quarantine", user="", snapshot="approved", policy="popular")


def _cached() -> Iterator[Spec]:
    """A second request after the first, which has the fields of `first` in place of its own.

    `rebuild` renews the snapshot in between.
    """
    yield _spec("cached", user="u12", first={})
    yield _spec("cached", user="u12", first={"overloaded": True})
    yield _spec("cached", user="u12", overloaded=True, first={"overloaded": False})
    yield _spec("cached", user="u12", overloaded=True, first={})
    yield _spec("cached", user="u12", explore=0.5, seed=1, first={})
    yield _spec("cached", user="new-0", first={"user": "new-2"})
    yield _spec("cached", user="u12", items=["item-001"], first={"items": ["item-002"]})
    yield _spec("cached", user="u12", rebuild=True, first={})
    yield _spec("cached", user="u12", rebuild=True, explain=True, first={"explain": False})
    yield _spec("cached", user="new-0", rebuild=True, first={})
    yield _spec("cached", user="session:s9", rebuild=True, first={})


def _positions() -> Iterator[Spec]:
    yield _spec("position", user="u12", after="feedback/0/41")
    yield _spec("position", user="u12", after="feedback/0/42")
    yield _spec("position", user="", after="feedback/7/0")


def _explained() -> Iterator[Spec]:
    for user, snapshot in zip(_some(USERS, 10, 8), cycle(VARIANTS), strict=False):
        yield _spec("explain", user=user, explain=True, snapshot=snapshot)
    for policy in POLICIES[1:]:
        yield _spec("explain", user="u19", explain=True, policy=policy)
    yield _spec("explain", user="one-view", explain=True, policy="als")
    yield _spec("explain", user="session:s9", explain=True, items=["item-060"])
    yield _spec(
        "explain", user="u19", explain=True, rules="mixed", diversity=0.2, explore=0.2, seed=2
    )
    yield _spec("explain", user="new-0", explain=True)
    yield _spec("explain", user="undone-and-again", explain=True, items=["item-033", "item-060"])
    yield _spec("explain", user="newest-not-in-catalogue", explain=True, page=2)


def _similar() -> Iterator[Spec]:
    for item in ("item-001", "item-014", "item-100", "item-385", "item-396", "ghost", "nowhere"):
        yield _spec("similar", list="similar", item=item)
    for by in ("co-purchase", "content"):
        yield _spec("similar", list="similar", item="item-022", by=by)
        yield _spec(
            "similar", list="similar", item="item-022", by=by, category="Photo", rules="exclude"
        )
    yield _spec("similar", list="similar", item="item-022", filters=["price:20.."], n=40)
    yield _spec("similar", list="similar", item="item-022", snapshot="no_model")
    yield _spec("similar", list="similar", item="item-022", snapshot="plain_model")


def _popular() -> Iterator[Spec]:
    for window in (None, "hour", "day", "month"):
        yield _spec("popular", list="popular", window=window, n=15)
        yield _spec("popular", list="popular", window=window, category="Rare", rules="exclude")
    yield _spec("popular", list="popular", window=None, snapshot="no_model", filters=["brand:Acme"])
    yield _spec("popular", list="popular", window="day", snapshot="catalogue_only")


def _latest() -> Iterator[Spec]:
    yield _spec("latest", list="latest", n=40)
    yield _spec("latest", list="latest", category="Lamps", rules="mixed")
    yield _spec("latest", list="latest", filters=["brand:Acme", "price:..90"])
    yield _spec("latest", list="latest", snapshot="no_model", n=12)


def _combined(count: int) -> Iterator[Spec]:
    """Several features at once, drawn at random with a fixed seed."""
    random = Random(71)
    return (_any_spec(random, seed) for seed in range(count))


def _any_spec(random: Random, seed: int) -> Spec:
    choices: dict[str, tuple[float, Any]] = {
        "items": (0.3, [item_id(random.randrange(400)) for _ in range(3)]),
        "exclude": (0.3, [item_id(random.randrange(400)) for _ in range(40)]),
        "category": (0.2, random.choice(("Cameras", "Photo", "Rare", "Electronics"))),
        "filters": (0.2, random.choice(FILTERS[:8])),
        "policy": (0.3, random.choice(POLICIES)),
        "explore": (0.3, random.choice((0.2, 0.5))),
        "sampling": (0.5, "softmax"),
        "diversity": (0.3, random.choice((0.2, 0.7))),
        "weights": (0.2, {"trend": 2.0, "history": 0.5}),
        "explain": (0.3, True),
        "page": (0.3, random.choice((1, 2, 3))),
        "offset": (0.2, random.choice((2, 9))),
        "overloaded": (0.15, True),
        "store": (0.1, "down"),
        "model": (0.2, "m2"),
    }
    asked = {name: value for name, (chance, value) in choices.items() if random.random() < chance}
    rules = random.choice(tuple(RULES))
    snapshot = random.choice((*VARIANTS, "trees", "no_model", "approved"))
    user = random.choice((*USERS, *SESSIONS, "", "new-0"))
    n = random.choice((4, 10, 10, 24))
    return _spec("combined", user=user, rules=rules, snapshot=snapshot, n=n, seed=seed, **asked)

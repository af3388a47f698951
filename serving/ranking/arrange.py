"""From a ranked pool to the page that is shown: weights → rules → diversity → exploration → pins → page.

Each step that moves an item says so in a part of its receipt, so that parts still add up to scores and the
list is still sorted by score. Nothing here runs for a plain request where no rule is in force.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from afterclick.arrays import Float64Array, IndexArray, IntArray
from serving.ranking.diversity import diversify, vectors_of
from serving.ranking.exploration import TAIL, explore
from serving.ranking.lists import Ranked
from serving.ranking.options import Options, Page
from serving.state.item_catalogue import Catalogue
from serving.state.snapshot import ActiveRules, ServingSnapshot

LEAST_POOL = 60
POOL_PER_PLACE = 3
PINNED = "picked by the shop"
EXPLORED = "to find out whether it suits you"


def pool_size(n: int, page: Page, options: Options) -> int:
    """How many items to rank for a page of n: those above it, and what may move up into it."""
    last = page.offset + n
    tails = n * TAIL if options.explore else 0
    return last + max(LEAST_POOL, (POOL_PER_PLACE - 1) * n, tails)


@dataclass
class _Pool:
    """The ranked pool while it is arranged. `rows` are the page's, best first."""

    parts: dict[str, Float64Array]
    scores: Float64Array
    rows: IndexArray

    def add(self, part: str, rows: IndexArray, amounts: Float64Array) -> None:
        """Give rows something, and say so in a part."""
        column = self.parts.setdefault(part, np.zeros(len(self.scores)))
        column[rows] += amounts
        self.scores[rows] += amounts


def arrange(
    snapshot: ServingSnapshot,
    catalogue: Catalogue,
    ranked: Ranked,
    n: int,
    options: Options,
    page: Page,
    dice: np.random.Generator,
) -> Ranked:
    """The page of n items that a request gets of a ranked pool."""
    weights = dict(options.weights)
    parts = {name: part * weights.get(name, 1.0) for name, part in ranked.parts.items()}
    pool = _Pool(parts, np.sum(list(parts.values()), axis=0), np.empty(0, np.intp))
    rules, last = snapshot.rules, page.offset + n
    if len(rules.boosted):
        everything = np.arange(len(pool.scores))
        pool.add("rules", everything, rules.amount_of(ranked.items))
    order = np.argsort(-pool.scores, kind="stable")
    if options.diversity:
        order = _diversified(snapshot, catalogue, ranked, pool, options.diversity, last)
    pinned = _pins(rules, ranked, page, last)
    order = order[~np.isin(order, list(pinned.values()))]
    pool.rows, tail = order[: last - len(pinned)], order[last - len(pinned) :]
    reasons = [ranked.reasons[row] for row in pool.rows.tolist()]
    propensities = np.ones(len(pool.rows))
    if options.explore:
        tail = _tail(ranked.items, tail, snapshot.newest, n * TAIL)
        propensities = _explored(pool, tail, page.offset, options, dice, reasons)
    rows, reasons, propensities = _with_pins(pool, pinned, reasons, propensities)
    rows = rows[page.offset :]
    return replace(
        ranked,
        items=ranked.items[rows],
        parts={name: part[rows] for name, part in pool.parts.items()},
        sources=[ranked.sources[row] for row in rows.tolist()],
        reasons=reasons[page.offset :],
        propensities=propensities[page.offset :] if options.explore else None,
        arranged=True,
    )


def _tail(items: IntArray, rest: IndexArray, newest: IntArray, room: int) -> IndexArray:
    """What may be explored: the best of the rest, and in up to a third of the room what came last."""
    new = rest[np.isin(items[rest], newest)]
    new = new[np.argsort(-items[new])][: room // 3]
    others = rest[~np.isin(rest, new)]
    return np.concatenate([others[: room - len(new)], new])


def _explored(
    pool: _Pool,
    tail: IndexArray,
    offset: int,
    options: Options,
    dice: np.random.Generator,
    reasons: list[str],
) -> Float64Array:
    """Explore the places from `offset` on; returns the propensity of each place."""
    own = pool.rows[offset:]
    explored = explore(own, tail, pool.scores, options.explore, options.draw, dice)
    drawn, hidden = explored.rows[explored.drawn], own[explored.drawn]
    pool.add("exploration", drawn, pool.scores[hidden] - pool.scores[drawn])
    pool.rows = np.concatenate([pool.rows[:offset], explored.rows])
    for place in np.flatnonzero(explored.drawn).tolist():
        reasons[offset + place] = EXPLORED
    return np.concatenate([np.ones(offset), explored.propensities])[: len(pool.rows)]


def _diversified(
    snapshot: ServingSnapshot,
    catalogue: Catalogue,
    ranked: Ranked,
    pool: _Pool,
    diversity: float,
    last: int,
) -> IndexArray:
    """Every row: the diversified first ones, then the rest by score."""
    rows, lost = diversify(
        pool.scores, vectors_of(snapshot, catalogue, ranked.items), diversity, last
    )
    pool.add("diversity", rows, -lost)
    rest = np.setdiff1d(np.arange(len(pool.scores)), rows)
    return np.concatenate([rows, rest[np.argsort(-pool.scores[rest], kind="stable")]])


def _pins(rules: ActiveRules, ranked: Ranked, page: Page, last: int) -> dict[int, int]:
    """Place → row, for the pinned items that may be in this list."""
    if not rules.pins:
        return {}
    row_of = {item: row for row, item in enumerate(ranked.items.tolist())}
    places = ((pin.place - len(page.shown), row_of.get(pin.item)) for pin in rules.pins)
    return {place: row for place, row in places if 0 <= place < last and row is not None}


def _with_pins(
    pool: _Pool, pinned: dict[int, int], reasons: list[str], propensities: Float64Array
) -> tuple[IndexArray, list[str], Float64Array]:
    """Put pinned rows at their places; each takes the score of the item below it."""
    rows, shown = pool.rows.tolist(), propensities.tolist()
    for place, row in sorted(pinned.items()):
        rows.insert(place, row)
        reasons.insert(place, PINNED)
        shown.insert(place, 1.0)
    fixed = set(pinned.values())
    for place in reversed(range(len(rows))):
        if rows[place] in fixed:
            one = np.array([rows[place]], np.intp)
            pool.add("rules", one, _target(pool, rows, place, fixed) - pool.scores[one])
    return np.array(rows, np.intp), reasons, np.array(shown)


def _target(pool: _Pool, rows: list[int], place: int, fixed: set[int]) -> float:
    """The score a pinned row needs: that of the row below; at the end, no more than that of any row above."""
    if place + 1 < len(rows):
        return float(pool.scores[rows[place + 1]])
    above = [float(pool.scores[row]) for row in rows[:place] if row not in fixed]
    return min([float(pool.scores[rows[place]]), *above])

"""From a ranked pool to one page: weights → dislikes → rules → diversity → exploration → pins.

Each step that moves an item records it in a contribution, so contributions still add up to scores
and the list is still sorted by score. A plain request without active rules is not reranked.

Diversity is maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998). Items are taken one
by one, each time the one with the greatest

    score − diversity · range · (its greatest similarity to the items taken)

where `range` is the difference between the best and the worst score. With λ = 1 / (1 + diversity)
that is their formula, scaled. Penalties only grow, so a diversified list is still sorted by score.

Exploration gives each rank its own alternatives: the items just below the page, dealt in turn.
With probability ε a rank shows one of its alternatives. Ranks are independent and no item can come
up twice, so the propensity of what is shown is exact: 1 − ε for the slot item, ε · P(sampled) for
an alternative, 1 for a rank without alternatives. All propensities are positive for 0 < ε < 1,
which makes inverse propensity scoring unbiased (Horvitz and Thompson, 1952; for recommenders:
Schnabel et al., ICML 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from afterclick.api import SamplingPolicy
from afterclick.arrays import Float64Array as Floats
from afterclick.arrays import IntArray
from serving.eligibility import EXPLORATION_POOL
from serving.request import Options, RecommendationRequest
from serving.state.snapshot import ServingSnapshot
from serving.tiers import RankedList

Rows = NDArray[np.intp]
PINNED = "picked by the shop"
EXPLORED = "to find out whether it suits you"


def rerank(
    ranked: RankedList,
    snapshot: ServingSnapshot,
    request: RecommendationRequest,
    rng: np.random.Generator,
    added: Mapping[str, Floats] | None = None,
) -> RankedList:
    """The page of `request.n` items from a ranked pool.

    `added`: contributions (c,) by name, in addition to those of the ranker.
    """
    options, page, rules = request.options, request.page, snapshot.rules
    ranked = replace(ranked, contributions={**ranked.contributions, **(added or {})})
    pool, last = RankedPool.of(ranked, dict(options.weights)), page.offset + request.n
    if len(rules.boosted):
        pool.add("rules", np.arange(len(pool.scores)), rules.amount_of(ranked.items))
    order = np.argsort(-pool.scores, kind="stable")
    if options.diversity:
        order = _diversified(pool, vectors_of(snapshot, ranked.items), options.diversity, last)
    pins = _pins(snapshot, ranked, request, last)
    order = order[~np.isin(order, list(pins.values()))]
    pool.show(order[: last - len(pins)])
    if options.explore:
        below = order[last - len(pins) :]
        room = request.n * EXPLORATION_POOL
        below = _alternatives(ranked.items, below, snapshot.new_items, room)
        pool.explore(page.offset, below, options, rng)
    pool.pin(pins)
    return pool.page(page.offset, bool(options.explore))


@dataclass
class RankedPool:
    """A ranked pool while it is reranked."""

    ranked: RankedList
    contributions: dict[str, Floats]
    scores: Floats
    rows: Rows = field(default_factory=lambda: np.empty(0, np.intp))
    """Rows of the page and of the ranks above it, best first."""
    propensities: Floats = field(default_factory=lambda: np.empty(0))
    reasons: dict[int, str] = field(default_factory=dict)
    """Row → reason, for explored and pinned items."""

    @classmethod
    def of(cls, ranked: RankedList, weights: dict[str, float]) -> Self:
        contributions = {
            name: values * weights.get(name, 1.0) for name, values in ranked.contributions.items()
        }
        return cls(ranked, contributions, np.sum(list(contributions.values()), axis=0))

    def add(self, name: str, rows: Rows, amounts: Floats) -> None:
        """Add amounts to the scores of rows, recorded as a contribution."""
        column = self.contributions.setdefault(name, np.zeros(len(self.scores)))
        column[rows] += amounts
        self.scores[rows] += amounts

    def show(self, rows: Rows) -> None:
        self.rows, self.propensities = rows, np.ones(len(rows))

    def explore(self, offset: int, below: Rows, options: Options, rng: np.random.Generator) -> None:
        """Explore the ranks from `offset` on with the rows `below` the page."""
        slots = self.rows[offset:]
        explored = explore(slots, below, self.scores, options, rng)
        sampled, hidden = explored.rows[explored.is_sampled], slots[explored.is_sampled]
        self.add("exploration", sampled, self.scores[hidden] - self.scores[sampled])
        self.rows = np.concatenate([self.rows[:offset], explored.rows])
        self.propensities = np.concatenate([np.ones(offset), explored.propensities])
        self.propensities = self.propensities[: len(self.rows)]
        self.reasons |= dict.fromkeys(sampled.tolist(), EXPLORED)

    def pin(self, pins: dict[int, int]) -> None:
        """Insert pinned rows at their ranks; each takes the score of the item below it."""
        rows, propensities = self.rows.tolist(), self.propensities.tolist()
        for rank, row in sorted(pins.items()):
            rows.insert(rank, row)
            propensities.insert(rank, 1.0)
        pinned = set(pins.values())
        for rank in reversed(range(len(rows))):
            if rows[rank] in pinned:
                pin = np.array([rows[rank]], np.intp)
                self.add("rules", pin, self._pin_score(rows, rank, pinned) - self.scores[pin])
        self.rows, self.propensities = np.array(rows, np.intp), np.array(propensities)
        self.reasons |= dict.fromkeys(pinned, PINNED)

    def _pin_score(self, rows: list[int], rank: int, pinned: set[int]) -> float:
        """The score of the row below; at the end, no more than that of any row above."""
        if rank + 1 < len(rows):
            return float(self.scores[rows[rank + 1]])
        above = [float(self.scores[row]) for row in rows[:rank] if row not in pinned]
        return min([float(self.scores[rows[rank]]), *above])

    def page(self, offset: int, explored: bool) -> RankedList:
        """The list from rank `offset` on."""
        rows = self.rows[offset:]
        reasons = enumerate(map(self.reasons.get, rows.tolist()))
        return replace(
            self.ranked,
            items=self.ranked.items[rows],
            contributions={name: values[rows] for name, values in self.contributions.items()},
            sources=[self.ranked.sources[row] for row in rows.tolist()],
            fixed_reasons={rank: reason for rank, reason in reasons if reason is not None},
            propensities=self.propensities[offset:] if explored else None,
            reranked=True,
        )


def _pins(
    snapshot: ServingSnapshot, ranked: RankedList, request: RecommendationRequest, last: int
) -> dict[int, int]:
    """Rank → row of the pinned items in this list. Ranks count from the cursor's position."""
    pins = snapshot.rules.pins
    if not pins:
        return {}
    row_of = {item: row for row, item in enumerate(ranked.items.tolist())}
    shown = len(request.page.shown)
    ranks = ((pin.rank - shown, row_of.get(pin.item)) for pin in pins)
    return {rank: row for rank, row in ranks if 0 <= rank < last and row is not None}


@dataclass(frozen=True)
class Explored:
    """A list after exploration; every array is (n,)."""

    rows: Rows
    """The row shown at each rank."""
    propensities: Floats
    """The probability that this row is shown at this rank."""
    is_sampled: NDArray[np.bool_]
    """Whether it is an alternative."""


def explore(
    slots: Rows, below: Rows, scores: Floats, options: Options, rng: np.random.Generator
) -> Explored:
    """Explore a list. `slots` (n,) and `below` (t,) are rows of `scores` (c,), best first."""
    n = len(slots)
    rows, propensities, is_sampled = slots.copy(), np.ones(n), np.zeros(n, bool)
    for rank in range(n):
        alternatives = below[rank::n][:EXPLORATION_POOL]
        if not len(alternatives):
            continue
        probabilities = sampling_probabilities(scores[alternatives], options.sampling)
        if rng.random() < options.explore:
            sampled = int(rng.choice(len(alternatives), p=probabilities))
            rows[rank], is_sampled[rank] = alternatives[sampled], True
            propensities[rank] = options.explore * probabilities[sampled]
        else:
            propensities[rank] = 1.0 - options.explore
    return Explored(rows, propensities, is_sampled)


def sampling_probabilities(scores: Floats, sampling: SamplingPolicy) -> Floats:
    """(t,) P(sampled) of each alternative, by its score; adds up to 1."""
    if sampling is SamplingPolicy.UNIFORM or not (spread := float(scores.std())):
        return np.full(len(scores), 1.0 / len(scores))
    weights = np.exp((scores - scores.max()) / spread)
    return np.asarray(weights / weights.sum())


def _alternatives(items: IntArray, below: Rows, new_items: IntArray, room: int) -> Rows:
    """The best rows below the page; up to a third of the room goes to the newest items."""
    new = below[np.isin(items[below], new_items)]
    new = new[np.argsort(-items[new])][: room // 3]
    others = below[~np.isin(below, new)]
    return np.concatenate([others[: room - len(new)], new])


def diversify(scores: Floats, vectors: Floats, diversity: float, count: int) -> tuple[Rows, Floats]:
    """The rows taken, in their order (count,), and the penalty of each (count,).

    `scores` (c,); `vectors` (c, d) of length 1 or 0, whose products are the similarities.
    """
    count = min(count, len(scores))
    taken, penalties = np.empty(count, np.intp), np.zeros(count)
    nearest = np.zeros(len(scores))
    scale = diversity * float(np.ptp(scores)) if len(scores) else 0.0
    free = np.ones(len(scores), bool)
    for rank in range(count):
        values = np.where(free, scores - scale * nearest, -np.inf)
        row = int(values.argmax())
        taken[rank], penalties[rank] = row, scale * nearest[row]
        free[row] = False
        np.maximum(nearest, vectors @ vectors[row], out=nearest)
    return taken, penalties


def _diversified(pool: RankedPool, vectors: Floats, diversity: float, last: int) -> Rows:
    """All rows: the diversified first `last`, then the rest by score."""
    rows, penalties = diversify(pool.scores, vectors, diversity, last)
    pool.add("diversity", rows, -penalties)
    rest = np.setdiff1d(np.arange(len(pool.scores)), rows)
    return np.concatenate([rows, rest[np.argsort(-pool.scores[rest], kind="stable")]])


def vectors_of(snapshot: ServingSnapshot, items: IntArray) -> Floats:
    """(c, d) vectors of length 1 or 0: the items' content, else factors, else categories."""
    model = snapshot.loaded.model
    if snapshot.content is not None:
        return _unit(snapshot.content.rows(items).astype(np.float64))
    if model is None or model.factors is None:
        return _category_vectors(snapshot, items)
    known = items < len(model)
    vectors = np.zeros((len(items), model.factors.shape[1]))
    vectors[known] = model.factors[items[known]]
    return _unit(vectors)


def _category_vectors(snapshot: ServingSnapshot, items: IntArray) -> Floats:
    known = [snapshot.catalogue.get(snapshot.ids[item]) for item in items.tolist()]
    names = {
        name: i for i, name in enumerate({n for item in known if item for n in item.categories})
    }
    vectors = np.zeros((len(items), max(len(names), 1)))
    for row, item in enumerate(known):
        for name in item.categories if item else ():
            vectors[row, names[name]] = 1.0
    return _unit(vectors)


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0))

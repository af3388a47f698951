"""Lists that need no model: by interests, trending, popular."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.api import SimilarityKind, Tier
from afterclick.arrays import IntArray
from afterclick.user_vectors import UserState
from serving.ranking.choice import Choice, without
from serving.state.item_catalogue import Catalogue
from serving.state.snapshot import ServingSnapshot, best

HEAT_WEIGHT = 0.05
"""What heat counts for beside content: enough to order items that match an interest equally well."""


@dataclass(frozen=True)
class Ranked:
    """Items in order, with their receipts: `parts` hold a number per item and add up to its score."""

    source: Tier
    items: IntArray
    parts: dict[str, NDArray[np.float64]]
    sources: Sequence[str]
    reasons: Sequence[str]
    by: Callable[[UserState, IntArray], NDArray[np.float64]] | None = None
    """What scored the items (n,) for a user's state; None where the user's history has no say."""
    attributions: Sequence[list[dict[str, Any]]] | None = None
    """Per item the events of the user that moved it most, where that was asked for."""
    propensities: NDArray[np.float64] | None = None
    """(n,) the probability that each place shows its item; None where nothing is left to chance."""
    arranged: bool = False
    """Whether rules or options had a say."""


def overall(snapshot: ServingSnapshot, choice: Choice) -> Ranked:
    """What is trending; what is popular where nothing trends. Shows seen items before it shows none."""
    n = choice.n
    for bounds in (choice,) if choice.later else (choice, choice.though_seen()):
        wanted = bounds.also()
        trending = bounds.fitting(choice.trending(snapshot), wanted)[:n]
        rest = trending[:0]
        if len(trending) < n:
            rest = bounds.fitting(choice.popular(snapshot), trending, wanted)[: n - len(trending)]
        if len(trending):
            return _trending(snapshot, trending, np.concatenate([rest, wanted]))
        if len(rest):
            return _popular(snapshot, np.concatenate([rest, wanted]))
    everything = (
        np.arange(len(snapshot.heat), dtype=np.int32) if choice.inside is None else choice.inside
    )
    bounds = choice if choice.later else choice.though_seen()
    wanted = bounds.also()
    return _popular(snapshot, np.concatenate([bounds.fitting(everything, wanted)[:n], wanted]))


def popular(snapshot: ServingSnapshot, choice: Choice) -> Ranked:
    """What was chosen most of all time; where nothing that may be shown was, as `overall`."""
    wanted = choice.also()
    items = np.concatenate([choice.fitting(choice.popular(snapshot), wanted)[: choice.n], wanted])
    return _popular(snapshot, items) if len(items) else overall(snapshot, choice)


def _trending(snapshot: ServingSnapshot, items: IntArray, rest: IntArray) -> Ranked:
    """`rest` fills the list up; it has no heat, so it stays behind."""
    both = np.concatenate([items, rest])
    return Ranked(
        Tier.TRENDING,
        both,
        {"trend": snapshot.heat[both]},
        ["trending"] * len(items) + ["popular"] * len(rest),
        ["trending now"] * len(items) + ["popular with everyone"] * len(rest),
    )


def _popular(snapshot: ServingSnapshot, items: IntArray) -> Ranked:
    scores = np.log2(1.0 + snapshot.popularity[items])
    count = len(items)
    return Ranked(
        Tier.POPULAR,
        items,
        {"popularity": scores},
        ["popular"] * count,
        ["popular with everyone"] * count,
    )


def by_interests(
    snapshot: ServingSnapshot, catalogue: Catalogue, interests: Iterable[str], choice: Choice
) -> Ranked | None:
    """Items like the named items or of the named categories; None where no interest is known.

    score = content (similarity, or 1 per category) + model (bought by the same users) + trend (0.05 × heat).
    """
    m = len(snapshot.heat)
    content, model = np.zeros(m), np.zeros(m)
    why: dict[int, str] = {}
    seeds: list[int] = []
    for interest in interests:
        seed = snapshot.find(interest)
        if seed is not None:
            seeds.append(seed)
            near, alike, together = _like(snapshot, seed)
            content[near] += alike
            model[near] += together
            reason = f"like {catalogue.name(interest)}"
        else:
            near = snapshot.indices(catalogue.category(interest))
            content[near] += 1.0
            reason = f"in {interest}, which interests you"
        why.update(dict.fromkeys(near.tolist(), reason) | why)
    scores = np.where(content + model > 0, content + model + HEAT_WEIGHT * snapshot.heat, 0.0)
    scores[seeds] = 0.0
    candidates = np.flatnonzero(scores > 0).astype(np.int32)
    candidates = choice.fitting(candidates)
    items = candidates[best(scores[candidates], choice.n)]
    if not len(items):
        return None
    named = np.array(seeds, np.int32)
    wanted = choice.also(items, named)
    rest = choice.fitting(choice.trending(snapshot), items, named, wanted)[: choice.n - len(items)]
    rest = np.concatenate([rest, wanted])
    return _interesting(snapshot, items, rest, content, model, why)


def _interesting(
    snapshot: ServingSnapshot,
    items: IntArray,
    rest: IntArray,
    content: NDArray[np.float64],
    model: NDArray[np.float64],
    why: dict[int, str],
) -> Ranked:
    both = np.concatenate([items, rest])
    parts = {
        "content": content[both],
        "model": model[both],
        "trend": HEAT_WEIGHT * snapshot.heat[both],
    }
    order = np.argsort(-sum(parts.values()), kind="stable") if len(rest) else np.arange(len(both))
    both = both[order]
    sources = np.array(["interests"] * len(items) + ["trending"] * len(rest))[order].tolist()
    reasons = [why.get(item, "trending now") for item in both.tolist()]
    return Ranked(Tier.INTERESTS, both, {k: v[order] for k, v in parts.items()}, sources, reasons)


def latest(snapshot: ServingSnapshot, inside: IntArray | None = None) -> IntArray:
    """Items that may be shown, the newest first."""
    order = without(snapshot.latest, snapshot.rules.excluded)
    return order if inside is None else order[np.isin(order, inside)]


def similar(
    snapshot: ServingSnapshot,
    item: int,
    n: int,
    inside: IntArray | None = None,
    by: SimilarityKind = SimilarityKind.ALL,
) -> tuple[IntArray, NDArray[np.float64]]:
    """Items near an item and their scores: shared users, the same day's users, then content."""
    items, content, together = _like(snapshot, item)
    scores = {
        SimilarityKind.ALL: content + together,
        SimilarityKind.CO_PURCHASE: together,
        SimilarityKind.CONTENT: content,
    }[by]
    fits = (items != item) & ~np.isin(items, snapshot.rules.excluded)
    if inside is not None:
        fits &= np.isin(items, inside)
    items, scores = items[fits], scores[fits]
    top = best(scores, n)
    return items[top], scores[top]


def _like(
    snapshot: ServingSnapshot, seed: int
) -> tuple[IntArray, NDArray[np.float64], NDArray[np.float64]]:
    """The items near `seed`, each once, by content and by the users they share."""
    model = snapshot.loaded.model
    if model is None:
        return np.empty(0, np.int32), np.empty(0), np.empty(0)
    row = slice(seed, seed + 1)  # of nothing, where the item came after the model
    found = [model.neighbour_items[row].ravel(), model.same_day_items[row].ravel()]
    shared = [model.neighbour_scores[row].ravel(), model.same_day_scores[row].ravel()]
    alike = [np.zeros(len(one)) for one in found]
    search, vectors = snapshot.content_search, snapshot.content
    said = vectors.row(seed) if vectors is not None else None
    if search is not None and vectors is not None and said is not None:
        near = search(said, 100)
        near = near[near >= 0]
        found.append(near)
        shared.append(np.zeros(len(near), np.float32))
        alike.append(np.maximum(vectors.rows(near) @ said, 0.0))
    items, where = np.unique(np.concatenate(found), return_inverse=True)
    content, together = (
        np.asarray(np.bincount(where, np.concatenate(one), len(items)), np.float64)
        for one in (alike, shared)
    )
    known = items >= 0
    return items[known], content[known], together[known]

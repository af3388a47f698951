"""Diversity: maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

Items are taken one by one, each time the one with the greatest

    score − diversity · range · (its greatest similarity to what was taken)

where `range` is the difference between the best and the worst score, so that the similarity counts in the
score's own units. With λ = 1 / (1 + diversity) that is their formula, scaled. What is subtracted is the part
`diversity` of the receipt. As more is taken, penalties only grow, so the values at which items are taken
never rise: a diversified list is still sorted by score.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import Float64Array, IntArray
from serving.state.item_catalogue import Catalogue
from serving.state.snapshot import ServingSnapshot


def diversify(
    scores: Float64Array, vectors: Float64Array, diversity: float, count: int
) -> tuple[NDArray[np.intp], Float64Array]:
    """The rows taken, in their order (count,), and what each lost (count,).

    `scores` (c,); `vectors` (c, d) of length 1 or 0, whose products are the similarities.
    """
    count = min(count, len(scores))
    taken, lost = np.empty(count, np.intp), np.zeros(count)
    nearest = np.zeros(len(scores))
    scale = diversity * float(np.ptp(scores)) if len(scores) else 0.0
    free = np.ones(len(scores), bool)
    for place in range(count):
        values = np.where(free, scores - scale * nearest, -np.inf)
        row = int(values.argmax())
        taken[place], lost[place] = row, scale * nearest[row]
        free[row] = False
        np.maximum(nearest, vectors @ vectors[row], out=nearest)
    return taken, lost


def vectors_of(snapshot: ServingSnapshot, catalogue: Catalogue, items: IntArray) -> Float64Array:
    """(c, d) what each item is, as a vector of length 1 or 0: its content, its factors, or its categories."""
    model = snapshot.loaded.model
    if snapshot.content is not None:
        return _unit(snapshot.content.rows(items).astype(np.float64))
    if model is None or model.factors is None:
        return _categories(snapshot, catalogue, items)
    known = items < len(model)
    vectors = np.zeros((len(items), model.factors.shape[1]))
    vectors[known] = model.factors[items[known]]
    return _unit(vectors)


def _categories(snapshot: ServingSnapshot, catalogue: Catalogue, items: IntArray) -> Float64Array:
    found = [catalogue.items.get(snapshot.ids[item]) for item in items.tolist()]
    names = {
        name: i for i, name in enumerate({n for item in found if item for n in item.categories})
    }
    vectors = np.zeros((len(items), max(len(names), 1)))
    for row, item in enumerate(found):
        for name in item.categories if item else ():
            vectors[row, names[name]] = 1.0
    return _unit(vectors)


def _unit(vectors: Float64Array) -> Float64Array:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0))

"""NCF without torch: user vectors from live histories, and NeuMF's scores of candidates.

NeuMF (He et al., WWW 2017) adds a product of user and item vectors and an MLP of both. A user is
the recent history: the product's vector is its weighted sum, scaled to length 1; the MLP's is its
weighted mean. A search finds items by the product alone; the candidates get both parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from afterclick.arrays import BoolArray, Float64Array, FloatArray, IntArray
from afterclick.compiled import compiled_sums
from afterclick.kernels import as_items, as_vector, dot
from afterclick.sequence_encoder import AGES_DAYS, AGES_MS

NCF_HISTORY = 10
"""Newest items of a history that the user's vectors are made of."""
UNKNOWN = -100.0
"""The bias of an item that NCF did not learn: below every other score."""


@dataclass(frozen=True, eq=False)
class NcfArrays:
    """The arrays of a trained NeuMF over histories."""

    history: FloatArray
    """(n, d + h) contribution of a history item to the vectors of the product and of the MLP; zeros
    where unknown"""
    targets: FloatArray
    """(n, d + 1) item vectors of the product; the last column is the item's bias"""
    hidden: FloatArray
    """(n, h) an item's part of the MLP's first layer"""
    layers: FloatArray
    """(m, h + 2) of each neuron of the second layer: weights, bias, weight of its output"""
    ages: FloatArray
    """(len(AGES_DAYS) + 1,) weight of an item of the history by its age"""
    known: BoolArray = field(init=False)
    """(n,) items that NCF has learned"""

    def __post_init__(self) -> None:
        for name in ("history", "targets", "hidden", "layers", "ages"):
            object.__setattr__(self, name, as_vector(getattr(self, name)))
        object.__setattr__(self, "known", self.targets[:, -1] > UNKNOWN)

    @property
    def consistent(self) -> bool:
        """Whether the shapes fit together."""
        n, h = self.hidden.shape
        width = self.targets.shape[1] - 1
        shapes = (self.history.shape, self.targets.shape, self.layers.shape[1:], self.ages.shape)
        return shapes == ((n, width + h), (n, width + 1), (h + 2,), (len(AGES_DAYS) + 1,))

    def query(self, user: FloatArray) -> FloatArray:
        """(d + 1,) the part of a user's vector (d + 1 + h,) that a search of `targets` takes."""
        return user[: self.targets.shape[1]]

    def user(
        self, items: IntArray, weights: FloatArray, times_ms: Float64Array, now_ms: float
    ) -> FloatArray | None:
        """(d + 1 + h,) a unit vector, a one (for the bias) and the MLP's vector from a history,
        newest first; None where no item of the history is known."""
        newest = slice(NCF_HISTORY)
        times = np.ascontiguousarray(times_ms[newest], np.float64)
        past = as_items(items[newest]), as_vector(weights[newest]), times
        learned = self.history, self.known, self.targets.shape[1] - 1
        user = ncf_vector(learned, (AGES_MS, self.ages), past, float(now_ms))
        return user if len(user) else None

    def scores(self, user: FloatArray, items: IntArray) -> FloatArray:
        """(len(items),) NeuMF's logits for a user (d + 1 + h,); NaN for items that NCF did not
        learn."""
        found = np.empty(len(items), np.float32)
        self.write_scores(user, as_items(items), found)
        return found

    def write_scores(self, user: FloatArray, items: IntArray, out: FloatArray) -> None:
        """`scores` of items (c,) int32 into `out` (c,)."""
        neumf((self.targets, self.hidden, self.layers), self.known, items, user, out)


@compiled_sums
def ncf_vector(
    learned: tuple[FloatArray, BoolArray, int],
    age_weights: tuple[Float64Array, FloatArray],
    past: tuple[IntArray, FloatArray, Float64Array],
    now: float,
) -> FloatArray:
    """(d + 1 + h,) sums of the vectors (n, d + h) of past items: the first d scaled to length 1, a
    one, the mean of the others.

    `learned`: vectors, which items are known (n,), and d. `past`: items (h,), weights (h,) and
    times (h,). The weights are multiplied by that of an item's age: `age_weights` are the upper
    limits of age buckets (b,) and their weights (b + 1,). Empty where no item is known.
    """
    vectors, known, dim = learned
    limits, weights_of_ages = age_weights
    items, weights, times = past
    width, length, weighed = vectors.shape[1], 0.0, np.float32(0.0)
    user = np.zeros(width + 1, np.float32)
    for i in range(len(items)):
        if items[i] >= len(vectors) or not known[items[i]]:
            continue
        bucket = 0
        while bucket < len(limits) and limits[bucket] <= max(now - times[i], 0.0):
            bucket += 1
        weight = weights[i] * weights_of_ages[bucket]
        weighed += weight
        for column in range(dim):
            user[column] += weight * vectors[items[i], column]
        for column in range(dim, width):
            user[column + 1] += weight * vectors[items[i], column]
    for column in range(dim):
        length += user[column] * user[column]
    if length == 0.0:
        return user[:0]
    user[:dim] /= np.float32(np.sqrt(length))
    user[dim] = 1.0
    user[dim + 1 :] /= weighed
    return user


@compiled_sums
def neumf(
    arrays: tuple[FloatArray, FloatArray, FloatArray],
    known: BoolArray,
    items: IntArray,
    user: FloatArray,
    out: FloatArray,
) -> None:
    """Write NeuMF's logits of items (c,) for a user (d + 1 + h,) into `out` (c,).

    `arrays`: those of the product's items (n, d + 1), of the MLP's items (n, h), and the MLP's
    layers (m, h + 2). Items that are not `known` (n,), and all from n on, get NaN.
    """
    targets, hidden, layers = arrays
    part = user[: targets.shape[1]]
    for position in range(len(items)):
        item = items[position]
        if item >= len(known) or not known[item]:
            out[position] = np.float32(np.nan)
        else:
            out[position] = dot(targets[item], part)
    if len(known):
        _add_mlp(hidden, layers, items, user[targets.shape[1] :], out)


@compiled_sums
def _add_mlp(
    hidden: FloatArray, layers: FloatArray, items: IntArray, user: FloatArray, out: FloatArray
) -> None:
    """Add the MLP's part of the logits; what is NaN stays so.

    The loops over all items are the inner ones: they become vector instructions, 0.01 ms for 400
    items. One loop for product and MLP takes ten times as long.
    """
    width, count, zero = hidden.shape[1], len(items), np.float32(0.0)
    first, activation = np.empty((width, count), np.float32), np.empty(count, np.float32)
    for position in range(count):
        item = items[position] if items[position] < len(hidden) else 0
        for column in range(width):
            value = hidden[item, column] + user[column]
            first[column, position] = value if value > zero else zero
    for neuron in range(len(layers)):
        activation[:] = layers[neuron, width]
        for column in range(width):
            weight = layers[neuron, column]
            for position in range(count):
                activation[position] += weight * first[column, position]
        weight = layers[neuron, width + 1]
        for position in range(count):
            value = activation[position]
            out[position] += weight * (value if value > zero else zero)


def warm_up() -> None:
    """Compile the kernels, or load their machine code, so that no request waits for it."""
    items, known = np.zeros(1, np.int32), np.ones(1, np.bool_)
    two, one, vector = np.ones((1, 2), "f"), np.ones((1, 1), "f"), np.ones(1, np.float32)
    user = ncf_vector((two, known, 1), (AGES_MS, np.ones(7, "f")), (items, vector, np.ones(1)), 1.0)
    neumf((two, one, np.ones((1, 3), "f")), known, items, user, vector)

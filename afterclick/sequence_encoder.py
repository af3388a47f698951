"""The user vector of the sequence model, compiled: a transformer block over the newest items.

Only the output at the newest item is needed. So attention never forms keys and values: with the
query q of a head, k·q = a·(K q) for every normalised token a, and Σ p (V a) = V (Σ p a). That
leaves products of single vectors with matrices, and two passes over the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from afterclick.arrays import AnyArray, BoolArray, Float64Array, FloatArray, Int64Array, IntArray
from afterclick.compiled import compiled_sums
from afterclick.trends import DAY_MS

HISTORY = 20
"""Newest known items of a history that the model reads."""
AGES_DAYS = np.array([0.5, 3.0, 10.0, 30.0, 90.0, 365.0])
"""Upper limits of the buckets of ages and gaps; the last bucket is everything older."""
AGES_MS = AGES_DAYS * DAY_MS
WEIGHTS = np.array([0.3, 0.75, 1.5, 3.0], np.float32)
"""Upper limits of the buckets of action weights; the last bucket is everything above."""
N_WEIGHTS = len(WEIGHTS) + 1
N_GAPS = len(AGES_DAYS) + 1
EPSILON = 1e-6
"""Added to the mean square in a normalisation."""


def weight_bucket(weights: FloatArray) -> Int64Array:
    """The bucket of each action weight."""
    return np.searchsorted(WEIGHTS, weights, side="right")


def gap_bucket(gaps_ms: Float64Array | Int64Array) -> Int64Array:
    """The bucket of each time between an item and the next."""
    return np.searchsorted(AGES_MS, gaps_ms, side="right")


@dataclass(frozen=True, eq=False)
class SequenceEncoder:
    """The weights of the block (d: width, f: width of the feed-forward part)."""

    inputs: FloatArray
    """(N_WEIGHTS + N_GAPS, d) added to an item's vector by the buckets of its weight and its gap"""
    positions: FloatArray
    """(heads, HISTORY) added to the attention of each head by the number of items since"""
    norms: FloatArray
    """(3, d) scales of the normalisations before attention, feed-forward part and output"""
    attention: FloatArray
    """(6, d, d) query, key, value, output, gates of attention and of the feed-forward part; each
    multiplies a row vector from the right"""
    swiglu: FloatArray
    """(3, f, d) SwiGLU: activated, linear and output"""

    def __post_init__(self) -> None:
        for name, array in self.arrays().items():
            object.__setattr__(self, name, np.ascontiguousarray(array, np.float32))
        dim = self.inputs.shape[-1]
        expected = (
            ("inputs", (N_WEIGHTS + N_GAPS, dim)),
            ("positions", (len(self.positions), HISTORY)),
            ("norms", (3, dim)),
            ("attention", (6, dim, dim)),
            ("swiglu", (3, *self.swiglu.shape[1:2], dim)),
        )
        for name, shape in expected:
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name}: shape {getattr(self, name).shape}, expected {shape}")
        if dim % len(self.positions):
            raise ValueError(f"{dim} columns cannot be split into {len(self.positions)} heads")

    def arrays(self) -> dict[str, AnyArray]:
        """The weights by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def user(
        self,
        items: tuple[FloatArray, BoolArray],
        past: tuple[IntArray, FloatArray, Float64Array],
        now_ms: float,
    ) -> FloatArray:
        """(d + 1,) a unit vector and a one; empty where no item is known.

        `items`: vectors (n, d) and whether each is known (n,). `past`: items, weights and times of
        a history, newest first.
        """
        tables = self.inputs, self.positions, self.norms
        return encode(items, past, now_ms, tables, (self.attention, self.swiglu))


@compiled_sums
def encode(
    items: tuple[FloatArray, BoolArray],
    past: tuple[IntArray, FloatArray, Float64Array],
    now: float,
    tables: tuple[FloatArray, FloatArray, FloatArray],
    matrices: tuple[FloatArray, FloatArray],
) -> FloatArray:
    """(d + 1,) the output at the newest known item, scaled to length 1, and a one; (0,) without."""
    inputs, positions, norms = tables
    attention, swiglu = matrices
    dim = inputs.shape[1]
    tokens = _tokens(items, past, now, inputs)
    if not len(tokens):
        return np.empty(0, np.float32)
    newest = tokens[0].copy()
    for token in tokens:
        _normalise(token, norms[0])
    attended = _times(_attend(tokens, positions, attention), attention[3])
    _add_gated(newest, attended, attention[4])
    hidden = newest.copy()
    _normalise(hidden, norms[1])
    _add_gated(newest, _swiglu(hidden, swiglu), attention[5])
    _normalise(newest, norms[2])
    user, square = np.ones(dim + 1, np.float32), np.float32(1e-24)
    for i in range(dim):
        square += newest[i] * newest[i]
    for i in range(dim):
        user[i] = newest[i] / np.sqrt(square)
    return user


@compiled_sums
def _tokens(
    items: tuple[FloatArray, BoolArray],
    past: tuple[IntArray, FloatArray, Float64Array],
    now: float,
    inputs: FloatArray,
) -> FloatArray:
    """(t, d) the inputs of the newest known items, newest first."""
    vectors, known = items
    item, weight, time = past
    dim, count, next_time = vectors.shape[1], 0, now
    tokens = np.empty((HISTORY, dim), np.float32)
    for position in range(len(item)):
        row = item[position]
        if row < 0 or row >= len(known) or not known[row]:
            continue
        of_weight = np.searchsorted(WEIGHTS, weight[position], side="right")
        gap = max(next_time - time[position], 0.0)
        of_gap = N_WEIGHTS + np.searchsorted(AGES_MS, gap, side="right")
        next_time = time[position]
        for i in range(dim):
            tokens[count, i] = vectors[row, i] + inputs[of_weight, i] + inputs[of_gap, i]
        count += 1
        if count == HISTORY:
            break
    return tokens[:count]


@compiled_sums
def _normalise(vector: FloatArray, scale: FloatArray) -> None:
    """RMSNorm in place."""
    square = np.float32(0.0)
    for i in range(len(vector)):
        square += vector[i] * vector[i]
    factor = np.float32(1.0) / np.sqrt(square / np.float32(len(vector)) + np.float32(EPSILON))
    for i in range(len(vector)):
        vector[i] *= factor * scale[i]


@compiled_sums
def _times(vector: FloatArray, matrix: FloatArray) -> FloatArray:
    """(m,) vector (n,) times matrix (n, m)."""
    out = np.zeros(matrix.shape[1], np.float32)
    for i in range(len(vector)):
        value = vector[i]
        for j in range(matrix.shape[1]):
            out[j] += value * matrix[i, j]
    return out


@compiled_sums
def _attend(tokens: FloatArray, positions: FloatArray, attention: FloatArray) -> FloatArray:
    """(d,) the attention of the newest token, the first, to all tokens (t, d), normalised."""
    heads, dim = len(positions), tokens.shape[1]
    width = dim // heads
    scale = np.float32(1.0 / np.sqrt(width))
    query, out = _times(tokens[0], attention[0]), np.zeros(dim, np.float32)
    weights, mean = np.empty(len(tokens), np.float32), np.empty(dim, np.float32)
    for head in range(heads):
        start, end = head * width, (head + 1) * width
        for i in range(dim):  # K q of this head
            total = np.float32(0.0)
            for j in range(start, end):
                total += attention[1, i, j] * query[j]
            mean[i] = total * scale
        highest = np.float32(-np.inf)
        for t in range(len(tokens)):
            total = positions[head, t]
            for i in range(dim):
                total += tokens[t, i] * mean[i]
            weights[t] = total
            highest = max(highest, total)
        mean[:] = 0.0
        total = np.float32(0.0)
        for t in range(len(tokens)):
            weight = np.exp(weights[t] - highest)
            total += weight
            for i in range(dim):
                mean[i] += weight * tokens[t, i]
        for i in range(dim):
            value = mean[i] / total
            for j in range(start, end):
                out[j] += value * attention[2, i, j]
    return out


@compiled_sums
def _add_gated(vector: FloatArray, addition: FloatArray, gate: FloatArray) -> None:
    """vector + sigmoid(vector · gate) · addition, in place."""
    opened = _times(vector, gate)
    for i in range(len(vector)):
        vector[i] += addition[i] / (np.float32(1.0) + np.exp(-opened[i]))


@compiled_sums
def _swiglu(vector: FloatArray, weights: FloatArray) -> FloatArray:
    """(d,) Σ silu(vector · A) · (vector · B) times the rows of the output."""
    out = np.zeros(len(vector), np.float32)
    for f in range(weights.shape[1]):
        activated, linear = np.float32(0.0), np.float32(0.0)
        for i in range(len(vector)):
            activated += vector[i] * weights[0, f, i]
            linear += vector[i] * weights[1, f, i]
        value = activated / (np.float32(1.0) + np.exp(-activated)) * linear
        for i in range(len(vector)):
            out[i] += value * weights[2, f, i]
    return out


def warm_up() -> None:
    """Compile the encoder, or load its machine code."""
    ones, times = np.ones((1, 1), np.float32), np.zeros(1)
    encoder = SequenceEncoder(
        np.ones((N_WEIGHTS + N_GAPS, 1), np.float32),
        np.ones((1, HISTORY), np.float32),
        np.ones((3, 1), np.float32),
        np.ones((6, 1, 1), np.float32),
        np.ones((3, 1, 1), np.float32),
    )
    past = np.zeros(1, np.int32), ones[0], times
    encoder.user((ones, np.ones(1, np.bool_)), past, 0.0)

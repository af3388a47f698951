"""The inner loops of candidates, features, user vectors and the ranker, compiled.

Item indices are int32, vectors float32; all arrays are in C order. A hash table of positions finds
an item among a few hundred in one or two steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
from numba.cpython.unsafe.numbers import trailing_zeros
from numpy.typing import NDArray

from afterclick.arrays import BoolArray, Float64Array, FloatArray, Int64Array, IntArray
from afterclick.compiled import compiled, compiled_sums

SOURCE_BITS = 3
"""A candidate's key is its item index times 2^3 plus its source."""
MAX_LEAVES = 32
"""Of a tree: the kernel holds them as the bits of a uint32."""
ALL_LEAVES = (1 << MAX_LEAVES) - 1
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(32)
_lowest_bit = cast(Callable[[np.uint32], int], trailing_zeros)


@compiled
def _slot(item: int, size: int) -> np.int64:
    """Where the search for an item begins in a table of 2^b slots (Fibonacci hashing)."""
    hashed = (np.uint64(item) * _FACTOR) >> _SHIFT
    return np.int64(hashed & np.uint64(size - 1))


@compiled
def positions_of(items: IntArray) -> IntArray:
    """(2^b,) hash table of the positions of items (c,), at least half empty; -1: an empty slot."""
    size = 8
    while size < 2 * len(items):
        size *= 2
    table = np.full(size, np.int32(-1), np.int32)
    for position in range(len(items)):
        slot = _slot(items[position], size)
        while table[slot] >= 0 and items[table[slot]] != items[position]:
            slot = (slot + 1) & (size - 1)
        if table[slot] < 0:
            table[slot] = position
    return table


@compiled
def position_in(table: IntArray, items: IntArray, item: int) -> np.int64:
    """The first position of an item, by `positions_of(items)`; -1 without one."""
    slot = _slot(item, len(table))
    while table[slot] >= 0:
        if items[table[slot]] == item:
            return np.int64(table[slot])
        slot = (slot + 1) & (len(table) - 1)
    return np.int64(-1)


@compiled
def _claim(table: IntArray, item: int) -> bool:
    """Add an item to a hash set with a free slot; False if it is in there."""
    slot = _slot(item, len(table))
    while table[slot] >= 0:
        if table[slot] == item:
            return False
        slot = (slot + 1) & (len(table) - 1)
    table[slot] = item
    return True


@compiled
def union(
    neighbours: tuple[IntArray, ...],
    recent: IntArray,
    per_item: int,
    others: tuple[IntArray, ...],
    seen: IntArray,
) -> Int64Array:
    """Keys of the candidates: each item once, with its first source; unordered, without `seen`.

    Source 0: the first `per_item` of the lists `neighbours[0]` (n, K) of `recent` items; source 1:
    those of the other neighbour lists; then a source for each of `others`. Negative items are
    padding.
    """
    room = len(seen)
    for lists in neighbours:
        room += len(recent) * min(per_item, lists.shape[1])
    for items in others:
        room += len(items)
    size = 8
    while size < 2 * room:
        size *= 2
    table, keys = np.full(size, np.int32(-1), np.int32), np.empty(room, np.int64)
    for item in seen:
        _claim(table, item)
    count, source = 0, 0
    for lists in neighbours:
        for row in recent:
            for column in range(min(per_item, lists.shape[1])):
                item = lists[row, column]
                if item >= 0 and _claim(table, item):
                    keys[count] = (np.int64(item) << SOURCE_BITS) | source
                    count += 1
        source = 1
    for items in others:
        source += 1
        for item in items:
            if item >= 0 and _claim(table, item):
                keys[count] = (np.int64(item) << SOURCE_BITS) | source
                count += 1
    return keys[:count]


@compiled
def similarities(
    neighbours: IntArray,
    scores: FloatArray,
    recent: IntArray,
    candidates: tuple[IntArray, IntArray],
    out: tuple[FloatArray, FloatArray, FloatArray],
) -> None:
    """Write the similarity of candidates (c,) to the newest item, the highest to any recent one,
    and the sum with weights 1, 1/2, 1/3, … by age rank.

    `neighbours` and `scores` (n, K) by item; `recent` newest first, -1: unknown item;
    `candidates`: their hash table and items.
    """
    table, items = candidates
    last, highest, total = out
    sums = np.zeros(len(items))
    last[:] = 0.0
    highest[:] = 0.0
    for rank in range(len(recent)):
        row = recent[rank]
        if row < 0:
            continue
        for column in range(neighbours.shape[1]):
            if neighbours[row, column] < 0:
                continue
            position = position_in(table, items, neighbours[row, column])
            if position < 0:
                continue
            score = scores[row, column]
            if rank == 0:
                last[position] = score
            highest[position] = max(highest[position], score)
            sums[position] += score / np.float64(rank + 1)
    total[:] = sums


@compiled
def pair_scores(
    neighbours: IntArray, scores: FloatArray, recent: IntArray, shown: IntArray
) -> Float64Array:
    """(shown, recent) the score of each shown item in each recent item's list of neighbours."""
    out = np.zeros((len(shown), len(recent)))
    for past in range(len(recent)):
        for column in range(neighbours.shape[1]):
            item = neighbours[recent[past], column]
            for row in range(len(shown)):
                if shown[row] == item:
                    out[row, past] = max(out[row, past], np.float64(scores[recent[past], column]))
    return out


@compiled
def unlisted(items: IntArray, excluded: IntArray) -> BoolArray:
    """(c,) True for items (c,) ≥ 0 that are not in `excluded`."""
    table, keep = positions_of(excluded), np.empty(len(items), np.bool_)
    for position in range(len(items)):
        item = items[position]
        keep[position] = item >= 0 and position_in(table, excluded, item) < 0
    return keep


@compiled_sums
def dot(a: FloatArray, b: FloatArray) -> np.float32:
    """The inner product of two vectors (d,)."""
    total = np.float32(0.0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@compiled_sums
def products(
    vectors: tuple[FloatArray, FloatArray],
    known: BoolArray,
    items: IntArray,
    queries: FloatArray,
    out: tuple[FloatArray, IntArray],
) -> None:
    """Write inner products of the vectors of items (c,) with `queries` (q, d) into rows of a table.

    `vectors`: those of the model's items (n, d) and of later ones (m - n, d), both by item;
    `known` (k,) whether an item has one: others, and all from k on, get NaN. `out`: the table
    (F, c) and the row of each query (q,).
    """
    first, later = vectors
    table, rows = out
    n = len(first)
    for position in range(len(items)):
        item = items[position]
        if item >= len(known) or not known[item]:
            for query in range(len(queries)):
                table[rows[query], position] = np.float32(np.nan)
            continue
        vector = first[item] if item < n else later[item - n]
        for query in range(len(queries)):
            table[rows[query], position] = dot(vector, queries[query])


@compiled_sums
def tower_vector(
    vectors: FloatArray,
    age_weights: tuple[Float64Array, FloatArray],
    past: tuple[IntArray, FloatArray, Float64Array],
    now: float,
) -> FloatArray:
    """(d + 1,) the sum of the vectors (n, d) of past items, scaled to length 1, and a one.

    `past`: items (h,), weights (h,) and times (h,). The weights are multiplied by that of an
    item's age: `age_weights` are the upper limits of age buckets (b,) and their weights (b + 1,).
    Empty where no item is known.
    """
    limits, weights_of_ages = age_weights
    items, weights, times = past
    dim, length = vectors.shape[1], 0.0
    total = np.zeros(dim + 1, np.float32)
    for i in range(len(items)):
        if items[i] >= len(vectors):
            continue
        bucket = 0
        while bucket < len(limits) and limits[bucket] <= max(now - times[i], 0.0):
            bucket += 1
        weight = weights[i] * weights_of_ages[bucket]
        for column in range(dim):
            total[column] += weight * vectors[items[i], column]
    for column in range(dim):
        length += total[column] * total[column]
    if length == 0.0:
        return total[:0]
    total /= np.float32(np.sqrt(length))
    total[dim] = 1.0
    return total


@compiled_sums
def woodbury(
    spectrum: tuple[Float64Array, Float64Array],
    factors: FloatArray,
    rows: IntArray,
    extra: Float64Array,
    ridge: float,
) -> FloatArray:
    """(k,) the solution x of (G + Yᵀ E Y + ridge I) x = Yᵀ (1 + e), by an h × h solve.

    G by its eigenvalues (k,) and eigenvectors (k, k); Y (h, k): `rows` of `factors` (n, k); E the
    diagonal matrix of e = `extra` (h,) > 0.
    """
    values, vectors = spectrum
    h, k = len(rows), len(values)
    rotated, right = np.zeros((h, k)), np.zeros(k)
    for i in range(h):
        for j in range(k):
            factor = np.float64(factors[rows[i], j])
            for column in range(k):
                rotated[i, column] += factor * vectors[j, column]
        for column in range(k):
            right[column] += (1.0 + extra[i]) * rotated[i, column]
    inverse = 1.0 / (values + ridge)
    matrix, target = np.empty((h, h)), np.zeros(h)
    for i in range(h):
        for j in range(i + 1):
            total = 0.0
            for column in range(k):
                total += rotated[i, column] * inverse[column] * rotated[j, column]
            matrix[i, j] = total
        matrix[i, i] += 1.0 / extra[i]
        for column in range(k):
            target[i] += rotated[i, column] * inverse[column] * right[column]
    _solve(matrix, target)
    for i in range(h):
        for column in range(k):
            right[column] -= target[i] * rotated[i, column]
    solved = np.empty(k, np.float32)
    for row in range(k):
        total = 0.0
        for column in range(k):
            total += vectors[row, column] * inverse[column] * right[column]
        solved[row] = total
    return solved


@compiled
def _solve(matrix: Float64Array, target: Float64Array) -> None:
    """Solve a positive definite system in place by Cholesky's method; reads the lower triangle."""
    n = len(target)
    for i in range(n):
        for j in range(i + 1):
            total = matrix[i, j]
            for column in range(j):
                total -= matrix[i, column] * matrix[j, column]
            matrix[i, j] = np.sqrt(total) if i == j else total / matrix[j, j]
        for column in range(i):
            target[i] -= matrix[i, column] * target[column]
        target[i] /= matrix[i, i]
    for i in range(n - 1, -1, -1):
        for row in range(i + 1, n):
            target[i] -= matrix[row, i] * target[row]
        target[i] /= matrix[i, i]


Nodes = tuple[IntArray, FloatArray, NDArray[np.uint32], BoolArray]
"""Of trees, each (t, s): column, border, the leaves that remain for values above, as bits, and
whether NaN counts as above."""


@compiled
def tree_leaves(columns: FloatArray, nodes: Nodes) -> NDArray[np.uint8]:
    """(t, c) the leaf of each of t trees that a row ends in.

    `columns` (F, c): the rows, transposed. The leaf is the lowest bit that all nodes leave.
    """
    features, borders, above, unknown_above = nodes
    rows = columns.shape[1]
    found, leaves = np.empty((len(features), rows), np.uint8), np.empty(rows, np.uint32)
    every = np.uint32(ALL_LEAVES)
    for tree in range(len(features)):
        leaves[:] = every
        for node in range(features.shape[1]):
            column, border = columns[features[tree, node]], borders[tree, node]
            remaining = above[tree, node]
            if unknown_above[tree, node]:
                for row in range(rows):
                    leaves[row] &= every if column[row] <= border else remaining
            else:
                for row in range(rows):
                    leaves[row] &= remaining if column[row] > border else every
        for row in range(rows):
            found[tree, row] = _lowest_bit(leaves[row])
    return found


@compiled
def leaf_sums(leaves: NDArray[np.uint8], rows: Int64Array, tables: Float64Array) -> Float64Array:
    """(k, c) sums over t trees of k values (k, t, l) of the leaves (t, r) of `rows` (c,)."""
    sums = np.zeros((len(tables), len(rows)))
    for tree in range(len(leaves)):
        for kind in range(len(tables)):
            values = tables[kind, tree]
            for position in range(len(rows)):
                sums[kind, position] += values[leaves[tree, rows[position]]]
    return sums


def warm_up() -> None:
    """Compile the kernels, or load their machine code, so that no request waits for it."""
    items, pairs = np.zeros(1, np.int32), np.zeros((1, 1), np.int32)
    numbers, vector = np.zeros((1, 1), np.float32), np.zeros(1, np.float32)
    ones = np.ones((1, 1))
    union((pairs,) * 3, items, 1, (items,) * 6, items)
    unlisted(items, items)
    table = positions_of(items)
    similarities(pairs, numbers, items, (table, items), (vector, vector, vector))
    pair_scores(pairs, numbers, items, items)
    products((numbers, numbers), np.ones(1, np.bool_), items, numbers, (numbers, items))
    tower_vector(numbers, (ones[0], vector), (items, vector, ones[0]), 1.0)
    woodbury((ones[0], ones), numbers, items, ones[0], 1.0)
    nodes = (pairs, numbers, np.ones((1, 1), np.uint32), np.zeros((1, 1), np.bool_))
    leaves = tree_leaves(numbers, nodes)
    leaf_sums(leaves, np.zeros(1, np.int64), ones.reshape(1, 1, 1))


def no_rows(n: int) -> IntArray:
    """(n, 0) neighbour lists of a model that has none."""
    return np.empty((n, 0), np.int32)


def as_items(items: IntArray) -> IntArray:
    """Item indices as the kernels take them: int32, in one piece."""
    return np.ascontiguousarray(items, np.int32)


def as_vector(values: FloatArray) -> FloatArray:
    """Numbers as the kernels take them: float32, in one piece."""
    return np.ascontiguousarray(values, np.float32)

"""A weighted sum of the normalised scores of several models, and the search for its weights.

Weights are chosen on validation rows by NDCG. Among weights that are not worse than the best ones
by more than a standard error of the difference, the mean is taken: the middle of a flat region
transfers better to other rows than its highest point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import BoolArray, Float64Array, FloatArray, IntArray
from training.evaluation import list_metrics
from training.evaluation.published_split import DEPTH, Scores, best_columns

NORMS = ("user", "all", "rank")
"""How scores become comparable: `user` divides by the standard deviation of the user's scores,
`all` by the mean of all users', which keeps differences of confidence between users; `rank` is
1 / (10 + rank) up to RANKED."""
RANKED = 100
_CANDIDATES = 60
"""Best items of each model that a mixture is measured on."""
_STEPS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5)
"""Weights tried for a model, relative to 1 for the best single model."""
_SWEEPS = 2
_SMALLEST = 0.02
"""Share below which a model is left out."""
_BATCH_SCORES = 20_000_000


@dataclass(frozen=True)
class Mixture:
    """Weights of models, and how their scores are normalised."""

    norm: str
    weights: tuple[float, ...]
    """Sum to 1."""
    scales: tuple[float, ...]
    """Mean standard deviation of a user's scores by each model."""

    def scores(self, found: Sequence[FloatArray], seen: Any) -> FloatArray:
        """(b, n_items) from the scores of each model (b, n_items) and the seen items (CSR)."""
        total = np.zeros(seen.shape, np.float32)
        for scores, weight, scale in zip(found, self.weights, self.scales, strict=True):
            if weight:
                total += np.float32(weight) * normalised(unseen(scores, seen), self.norm, scale)
        return total


def unseen(scores: FloatArray, seen: Any) -> FloatArray:
    """A copy of scores (b, n_items) in which seen items have the least score of the row."""
    found = np.array(scores, np.float32)
    row, column = seen.nonzero()
    found[row, column] = found.min(axis=1)[row]
    return found


def normalised(scores: FloatArray, norm: str, scale: float) -> FloatArray:
    """(b, n_items) of one of NORMS."""
    if norm == "rank":
        best = _best(scores, RANKED)
        found = np.zeros_like(scores)
        values = (1.0 / (10.0 + np.arange(best.shape[1]))).astype(np.float32)
        # the order of items without any score says nothing
        scored = np.take_along_axis(scores, best, axis=1) > scores.min(axis=1, keepdims=True)
        np.put_along_axis(found, best, np.where(scored, values, np.float32(0.0)), axis=1)
        return found
    centred = scores - scores.mean(axis=1, keepdims=True)
    size: Any = np.float32(scale) if norm == "all" else centred.std(axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(size, np.float32(1e-12)), np.float32)


@dataclass(frozen=True)
class Validation:
    """The normalised scores of every model for the best items of any, and which are targets."""

    values: dict[str, FloatArray]
    """norm → (m, q, c)"""
    once: BoolArray
    """(q, c) whether a candidate is not a repetition of one before it"""
    hits: BoolArray
    """(q, c) whether it is a target"""
    relevant: IntArray
    """(q,) targets"""
    scales: tuple[float, ...]

    @classmethod
    def of(
        cls, models: Sequence[Scores], users: NDArray[np.intp], seen: Any, target: Any
    ) -> Validation:
        """For users (q,) with targets; `seen` and `target` (n_users, n_items) are CSR."""
        scales = tuple(_scale(scores, users, seen) for scores in models)
        step = max(1, _BATCH_SCORES // seen.shape[1])
        parts = [
            _candidates(models, users[start : start + step], (seen, target), scales)
            for start in range(0, len(users), step)
        ]
        values = {norm: np.concatenate([part[0][norm] for part in parts], axis=1) for norm in NORMS}
        once, hits = (np.concatenate([part[side] for part in parts]) for side in (1, 2))
        relevant = np.diff(target.indptr)[users].astype(np.int32)
        return cls(values, once, hits, relevant, scales)

    def ndcg(self, norm: str, weights: Float64Array) -> Float64Array:
        """(q,) NDCG@20 of the mixture with weights (m,) for each user."""
        scores = np.tensordot(weights.astype(np.float32), self.values[norm], axes=1)
        scores[~self.once] = -np.inf
        best = _best(scores, DEPTH)
        hits = np.take_along_axis(self.hits & self.once, best, axis=1) & (best >= 0)
        return np.asarray(list_metrics.ndcg(hits, self.relevant, DEPTH), np.float64)


def find_weights(found: Validation, report: Callable[[str], None] = lambda _: None) -> Mixture:
    """The middle of the flat region around the best weights, by coordinate search."""
    best_norm, best, reached = NORMS[0], np.zeros(1), -1.0
    tried: dict[str, list[tuple[Float64Array, Float64Array]]] = {}
    for norm in NORMS:
        tried[norm] = _search(found, norm)
        weights, ndcg = max(tried[norm], key=lambda each: float(each[1].mean()))
        report(f"mixture by {norm}: ndcg@20 {ndcg.mean():.4f}")
        if ndcg.mean() > reached:
            best_norm, best, reached = norm, weights, float(ndcg.mean())
    middle = _middle(found, best_norm, best, tried[best_norm])
    return Mixture(best_norm, tuple(float(w) for w in middle), found.scales)


def _search(found: Validation, norm: str) -> list[tuple[Float64Array, Float64Array]]:
    """The weights tried, summing to 1, and the NDCG of each user."""
    n_models = len(found.scales)
    alone = [(row, found.ndcg(norm, row)) for row in np.eye(n_models)]
    tried = list(alone)
    order = sorted(range(n_models), key=lambda model: -float(alone[model][1].mean()))
    current, reached = alone[order[0]][0].copy(), float(alone[order[0]][1].mean())
    for _ in range(_SWEEPS):
        for model in order[1:] + order[:1]:
            for step in _STEPS:
                weights = current.copy()
                weights[model] = step
                if not weights.any() or np.array_equal(weights, current):
                    continue
                tried.append((weights / weights.sum(), found.ndcg(norm, weights)))
                if tried[-1][1].mean() > reached:
                    current, reached = weights, float(tried[-1][1].mean())
    return tried


def _middle(
    found: Validation,
    norm: str,
    best: Float64Array,
    tried: list[tuple[Float64Array, Float64Array]],
) -> Float64Array:
    """The mean of the weights that are as good as the best, if it is as good itself."""
    best = best / best.sum()
    reference = found.ndcg(norm, best)
    middle = np.mean([w for w, ndcg in tried if _as_good(ndcg, reference)], axis=0)
    middle[middle < _SMALLEST] = 0.0
    middle /= middle.sum()
    return middle if _as_good(found.ndcg(norm, middle), reference) else best


def _as_good(ndcg: Float64Array, reference: Float64Array) -> bool:
    """Whether NDCG (q,) is not below the reference by more than half a standard error."""
    lost = reference - ndcg
    return bool(lost.mean() <= 0.5 * lost.std() / np.sqrt(len(lost)) + 1e-12)


def _best(scores: FloatArray, count: int) -> IntArray:
    columns = np.arange(scores.shape[1], dtype=np.int32)
    return best_columns(scores, columns, min(count, scores.shape[1]))


def _scale(scores: Scores, users: NDArray[np.intp], seen: Any) -> float:
    some = users[:: max(1, len(users) // 200)][:200]
    return float(unseen(np.asarray(scores(some)), seen[some]).std(axis=1).mean())


def _candidates(
    models: Sequence[Scores],
    users: NDArray[np.intp],
    rows: tuple[Any, Any],
    scales: tuple[float, ...],
) -> tuple[dict[str, FloatArray], BoolArray, BoolArray]:
    """norm → (m, b, c) scores of the candidates; whether each is new; whether it is a target."""
    seen, target = (matrix[users] for matrix in rows)
    scored = [unseen(np.asarray(scores(users)), seen) for scores in models]
    items = np.sort(np.hstack([_best(scores, _CANDIDATES) for scores in scored]), axis=1)
    once = np.ones(items.shape, bool)
    once[:, 1:] = items[:, 1:] != items[:, :-1]
    taken = seen.toarray()[np.arange(len(users))[:, None], items] > 0
    hits = target.toarray()[np.arange(len(users))[:, None], items] > 0
    values = {
        norm: np.stack(
            [
                np.take_along_axis(normalised(scores, norm, scale), items, axis=1)
                for scores, scale in zip(scored, scales, strict=True)
            ]
        )
        for norm in NORMS
    }
    return values, once & ~taken, hits

"""The compiled user vector of the sequence model equals the plain formulas."""

from __future__ import annotations

import numpy as np
import pytest

from afterclick.arrays import AnyArray
from afterclick.model import UNKNOWN_BIAS, TowerArrays
from afterclick.sequence_encoder import (
    EPSILON,
    HISTORY,
    N_GAPS,
    N_WEIGHTS,
    SequenceEncoder,
    gap_bucket,
    weight_bucket,
)

DAY = 86_400_000.0


def an_encoder(dim: int = 8, heads: int = 2) -> SequenceEncoder:
    random = np.random.default_rng(5)
    shapes = (
        (N_WEIGHTS + N_GAPS, dim),
        (heads, HISTORY),
        (3, dim),
        (6, dim, dim),
        (3, 2 * dim, dim),
    )
    return SequenceEncoder(*(random.normal(size=s).astype(np.float32) for s in shapes))


def some_towers(encoder: SequenceEncoder, n: int = 9) -> TowerArrays:
    random = np.random.default_rng(3)
    dim = encoder.inputs.shape[1]
    history = random.normal(size=(n, dim)).astype(np.float32)
    targets = random.normal(size=(n, dim + 1)).astype(np.float32)
    targets[2, -1] = UNKNOWN_BIAS
    return TowerArrays(history, targets, encoder=encoder)


def plain(encoder: SequenceEncoder, tokens: AnyArray) -> AnyArray:
    """The formulas, for tokens (t, d), newest first."""

    def norm(x: AnyArray, scale: AnyArray) -> AnyArray:
        return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * scale)

    def sigmoid(x: AnyArray) -> AnyArray:
        return np.asarray(1 / (1 + np.exp(-x)))

    query, key, value, out, gate, gate_2 = encoder.attention.astype(np.float64)
    x, a = tokens[0], norm(tokens, encoder.norms[0])
    heads = []
    for head, part in enumerate(np.split(np.arange(len(x)), len(encoder.positions))):
        logits = (a @ key)[:, part] @ (a[0] @ query)[part] / np.sqrt(len(part))
        weights = np.exp(logits + encoder.positions[head, : len(a)])
        heads.append(weights / weights.sum() @ (a @ value)[:, part])
    x = x + sigmoid(x @ gate) * (np.concatenate(heads) @ out)
    activated, linear, back = encoder.swiglu.astype(np.float64)
    a = norm(x, encoder.norms[1])
    hidden = (a @ activated.T) * sigmoid(a @ activated.T) * (a @ linear.T)
    x = norm(x + sigmoid(x @ gate_2) * (hidden @ back), encoder.norms[2])
    return np.asarray(x / np.linalg.norm(x))


@pytest.mark.parametrize("length", [1, 3, HISTORY, HISTORY + 5])
def test_the_vector_is_that_of_the_formulas(length: int) -> None:
    encoder, random = an_encoder(), np.random.default_rng(length)
    towers = some_towers(encoder)
    items = random.choice([0, 1, 3, 4, 5, 6, 7, 8], length).astype(np.int32)
    weights = random.choice([0.1, 0.5, 1.0, 2.0, 5.0], length).astype(np.float32)
    times = -np.cumsum(random.choice([0.0, 1.0, 20.0, 400.0], length)) * DAY
    gaps = np.append(0.0, times[:-1]) - times
    tokens = towers.history[items] + encoder.inputs[weight_bucket(weights)]
    tokens = tokens + encoder.inputs[N_WEIGHTS + gap_bucket(gaps)]
    found = towers.user(items, weights, times, 0.0)
    assert found is not None
    np.testing.assert_allclose(found[:-1], plain(encoder, tokens[:HISTORY]), atol=2e-5)
    assert found[-1] == 1.0


def test_unknown_items_of_a_history_are_skipped() -> None:
    towers = some_towers(an_encoder())
    ones, times = np.ones(4, np.float32), np.arange(0.0, -4.0, -1.0) * DAY
    found = towers.user(np.array([2, 5, 99, 0], np.int32), ones, times, 0.0)
    alone = towers.user(np.array([5, 0], np.int32), ones[:2], times[[1, 3]], 0.0)
    assert found is not None
    assert alone is not None
    np.testing.assert_allclose(found, alone, rtol=1e-6)
    assert towers.user(np.array([2, 99], np.int32), ones[:2], times[:2], 0.0) is None


def test_weights_of_a_wrong_shape_are_rejected() -> None:
    weights = an_encoder().arrays()
    with pytest.raises(ValueError, match="norms: shape"):
        SequenceEncoder(**{**weights, "norms": weights["norms"][:2]})
    with pytest.raises(ValueError, match="3 heads"):
        SequenceEncoder(**{**weights, "positions": np.ones((3, HISTORY), np.float32)})

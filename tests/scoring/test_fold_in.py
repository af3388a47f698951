"""Fold-in solves the equations of ALS for one user."""

from __future__ import annotations

import numpy as np

from afterclick.user_vectors import fold_in
from tests.scoring.examples import a_model, a_state


def test_fold_in_minimises_the_objective_of_als() -> None:
    """The gradient of Σ c (p − xᵀy)² + λ n |x|² over *all* items is zero at the answer."""
    random = np.random.default_rng(1)
    model = a_model(50, factors=random.normal(size=(50, 8)).astype(np.float32))
    state = a_state([3, 17, 40])
    x = fold_in(model, state)
    assert x is not None
    assert model.factors is not None
    y = model.factors.astype(np.float64)
    wanted, confidence = np.zeros(50), np.ones(50)
    wanted[state.items] = 1.0
    confidence[state.items] += model.als_alpha
    gradient = y.T @ (confidence * (wanted - y @ x)) - model.als_reg * 3 * x
    assert np.abs(gradient).max() < 1e-3


def test_an_action_of_greater_weight_moves_the_user_closer() -> None:
    model = a_model()
    light, heavy = a_state([2]), a_state([2])
    heavy.weights[:] = 5.0
    scores = []
    for state in (light, heavy):
        user = fold_in(model, state)
        assert user is not None
        assert model.factors is not None
        scores.append(float(model.factors[2] @ user))
    assert scores[0] < scores[1] < 1.0


def test_items_unknown_to_als_give_no_factors() -> None:
    unknown = a_model(factors=np.zeros((6, 4), np.float32))
    assert fold_in(unknown, a_state([1])) is None
    assert fold_in(a_model(), a_state([99])) is None
    assert fold_in(a_model(), a_state([])) is None
    assert fold_in(a_model(factors=None), a_state([1])) is None

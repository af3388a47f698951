"""Pushed items are limited; items with established support and new items are not."""

from __future__ import annotations

import numpy as np

from afterclick.quarantine import QuarantineLimits, apply_limits, usual_share
from afterclick.trends import HALF_LIVES_MS, TREND_MIX

H = len(HALF_LIVES_MS)
ITEMS = 50


def a_shop(votes: float = 40.0, share: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Items of which established users cast the same share of the votes."""
    return np.full((ITEMS, H), votes), np.full((ITEMS, H), votes * share)


def test_ordinary_votes_are_unchanged() -> None:
    votes, established = a_shop()
    found = apply_limits(votes, established, QuarantineLimits())
    assert found.established_share == 0.5
    assert not found.quarantined.any()
    assert (found.values == votes).all()
    assert (found.retained_share == 1.0).all()


def test_a_pushed_item_keeps_the_trend_that_established_users_support() -> None:
    votes, established = a_shop()
    votes[3] += 1000.0
    found = apply_limits(votes, established, QuarantineLimits())
    assert np.flatnonzero(found.quarantined).tolist() == [3]
    np.testing.assert_allclose(found.values[3], 40.0)  # what it would have had without the push
    np.testing.assert_allclose(found.retained_share[3], 40.0 / 1040.0)
    free = apply_limits(votes, established, QuarantineLimits(max_ratio=0.0))
    assert not free.quarantined.any()
    assert (free.values == votes).all()


def test_a_push_of_an_hour_limits_only_the_hour() -> None:
    votes, established = a_shop()
    votes[3, 0] += 1000.0
    found = apply_limits(votes, established, QuarantineLimits())
    assert found.values[3].tolist() == [40.0] * H
    assert found.quarantined[3]
    assert found.retained_share[3] == 1.0


def test_the_votes_of_many_new_accounts_are_scaled_to_the_usual_total() -> None:
    votes, established = a_shop()
    votes[:, 3] += 60.0  # equal votes on every item: no item is above the usual share
    found = apply_limits(votes, established, QuarantineLimits())
    assert not found.quarantined.any()
    usual, cast = ITEMS * 20.0 + QuarantineLimits().allowance, ITEMS * 80.0
    np.testing.assert_allclose(found.new_account_weight, [1, 1, 1, usual / cast, 1, 1])
    np.testing.assert_allclose(found.values[:, 3], 20.0 + 80.0 * found.new_account_weight[3])
    assert (np.delete(found.values, 3, axis=1) == 40.0).all()


def test_longer_half_lives_weigh_more_while_new_accounts_flood_the_week() -> None:
    votes, established = a_shop()
    week, month = (list(HALF_LIVES_MS).index(name) for name in ("week", "month"))
    votes[7, month:] *= 4.0  # has sold best for months
    established[7, month:] *= 4.0
    pushed = votes.copy()
    pushed[20:40, : week + 1] += 70.0
    limited, free = (
        apply_limits(pushed, established, bounds)
        for bounds in (QuarantineLimits(), QuarantineLimits(max_ratio=0.0))
    )
    assert int(np.argmax(limited.values @ limited.weights)) == 7
    assert int(np.argmax(limited.values @ TREND_MIX)) != 7  # fewer votes alone are not enough
    assert int(np.argmax(free.values @ free.weights)) != 7


def test_skips_by_established_users_are_not_votes_of_new_accounts() -> None:
    votes, established = a_shop()
    votes[3], established[3] = 500.0, -30.0
    found = apply_limits(votes, established, QuarantineLimits())
    assert found.quarantined[3]
    assert (found.values[3] == 0.0).all()
    assert (found.new_account_weight == 1.0).all()


def test_a_few_new_accounts_in_a_quiet_hour_count_in_full() -> None:
    votes, established = a_shop()
    votes[:, 0], established[:, 0] = 0.0, 0.0
    votes[3:6, 0] = 1.0
    found = apply_limits(votes, established, QuarantineLimits())
    assert (found.new_account_weight == 1.0).all()
    assert found.values[3:6, 0].tolist() == [1.0] * 3


def test_an_item_without_established_users_has_an_allowance() -> None:
    votes, established = a_shop()
    votes[3], established[3] = 20.0, 0.0
    assert not apply_limits(votes, established, QuarantineLimits()).quarantined.any()
    votes[3] = 21.0
    assert apply_limits(votes, established, QuarantineLimits()).quarantined[3]


def test_without_established_users_there_are_no_limits() -> None:
    votes, _ = a_shop()
    votes[3] += 1000.0
    assert usual_share(votes, np.zeros_like(votes)) == 0.0
    assert not apply_limits(votes, np.zeros_like(votes), QuarantineLimits()).quarantined.any()
    few = apply_limits(votes[:10], votes[:10] * 0.0, QuarantineLimits())
    assert not few.quarantined.any()


def test_votes_on_a_third_of_the_items_do_not_move_the_usual_share() -> None:
    votes, established = a_shop()
    votes[:16] += 1000.0
    found = apply_limits(votes, established, QuarantineLimits())
    assert found.established_share == 0.5
    assert found.quarantined.sum() == 16


def test_an_approved_item_has_no_limits() -> None:
    votes, established = a_shop()
    votes[3] += 1000.0
    found = apply_limits(votes, established, QuarantineLimits(), np.array([3]))
    assert not found.quarantined.any()
    assert (found.values == votes).all()

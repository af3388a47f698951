"""Off-policy estimators: values computed by hand, exact expectations, and coverage of the truth."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import t

from ingest.click_model import LOOK_DECAY
from tests.training import simulated_lists
from training.evaluation import off_policy_estimators as estimators
from training.evaluation.off_policy_estimators import LoggedLists, Weights
from training.off_policy import NoSupport, OffPolicyRequest, require_support

ESTIMATORS = {"ips", "snips", "doubly_robust"}


def lists(
    shown: list[list[tuple[int, float, float]]],
    target: list[list[int]],
    users: list[int] | None = None,
) -> LoggedLists:
    """Lists of (item, propensity, reward); each of another user by default."""
    rows = [
        (owner, rank, *row) for owner, each in enumerate(shown) for rank, row in enumerate(each)
    ]
    owner, rank, item, propensity, reward = (np.array(column) for column in zip(*rows, strict=True))
    return LoggedLists(
        user=np.array(users or range(len(shown))),
        owner=owner,
        rank=rank,
        item=item.astype(np.int32),
        propensity=propensity.astype(np.float64),
        reward=reward.astype(np.float64),
        target=np.array(target, np.int32),
    )


TWO = lists(
    [
        [(1, 0.5, 1.0), (2, 0.25, 1.0)],
        [(1, 0.5, 0.0), (3, 0.5, 1.0)],
    ],
    [[1, 4], [1, 3]],
)
"""The first list has one item of the target at its rank, the second both."""


def test_weights_count_an_item_at_the_same_rank() -> None:
    weights = estimators.weigh(TWO)
    assert weights.weight.tolist() == [2.0, 0.0, 2.0, 2.0]
    assert weights.support == 6.0 / 4.0  # by chance above 1
    assert weights.ess == 6.0**2 / 12.0


def test_ips_is_the_mean_of_the_weighted_rewards() -> None:
    found = estimators.ips(TWO, estimators.weigh(TWO))
    assert found.value == (2.0 + 2.0) / 2
    assert found.interval == (2.0, 2.0)  # both lists earned 2
    assert found.ess == 3.0


def test_snips_divides_by_the_weights() -> None:
    found = estimators.snips(TWO, estimators.weigh(TWO))
    rate = 4.0 / 6.0
    assert found.value == pytest.approx(rate * 2)
    # deviations of the lists: 2 · 2 / 6 · (2 − rate · mass) for masses of 2 and 4
    deviations = np.array([2 / 3 * (2 - rate * 2), 2 / 3 * (2 - rate * 4)])
    half = t.ppf(0.975, 1) * np.sqrt((deviations**2).sum() * 2) / 2
    assert found.interval == pytest.approx((rate * 2 - half, rate * 2 + half))


def test_doubly_robust_corrects_the_reward_model() -> None:
    predicted, of_target = np.full(4, 0.5), np.array([1.0, 1.0])
    found = estimators.doubly_robust(TWO, estimators.weigh(TWO), predicted, of_target)
    first, second = 1.0 + 2 * 0.5, 1.0 + 2 * -0.5 + 2 * 0.5
    assert found.value == (first + second) / 2


def test_with_a_decay_items_at_other_ranks_count() -> None:
    swapped = lists([[(1, 0.5, 1.0), (2, 0.25, 1.0)]] * 2, [[2, 1], [2, 1]])
    assert estimators.weigh(swapped).support == 0.0
    weights = estimators.weigh(swapped, decay=1.0)
    # item 1 from rank 1 to rank 2: half as often; item 2 the other way
    assert weights.weight.tolist() == [0.5 / 0.5, 2.0 / 0.25] * 2
    assert weights.mass.tolist() == [0.5 / 0.5, 1.0 / 0.25] * 2
    assert weights.target_mass.tolist() == [1.5, 1.5]


def test_padding_is_no_item_of_the_target() -> None:
    short = lists([[(1, 0.5, 1.0), (2, 1.0, 1.0)]] * 2, [[1, -1], [1, -1]])
    assert estimators.weigh(short).target_mass.tolist() == [1.0, 1.0]
    assert set(estimators.estimates(short)) == ESTIMATORS


def test_a_user_is_one_sampling_unit() -> None:
    """Copies of a user's list do not narrow the interval."""
    rng = np.random.default_rng(0)
    shown = [[(1, 0.5, float(rng.random() < 0.4))] for _ in range(40)]
    once = lists(shown, [[1]] * 40)
    copied = lists(shown * 4, [[1]] * 160, list(range(40)) * 4)
    for name, found in estimators.estimates(once).items():
        if name != "doubly_robust":  # its reward model has seen four times the lists
            assert estimators.estimates(copied)[name].interval == pytest.approx(found.interval)


@pytest.mark.parametrize("decay", [None, 0.7])
def test_ips_and_doubly_robust_are_unbiased(decay: float | None) -> None:
    """The exact expectation over every outcome of the exploration, for a wrong reward model too."""
    slots, explored = ((0, 0.6), (1, 0.6)), (((2, 0.3), (4, 0.1)), ((3, 0.4),))
    outcomes = [
        ((slots[rank], *explored[rank]), estimators.examination(2, decay)[rank]) for rank in (0, 1)
    ]
    appeal = np.array([0.1, 0.2, 0.7, 0.5, 0.3])
    target = [4, 1] if decay is None else [3, 2]
    truth = sum(
        appeal[item] * examined for item, (_, examined) in zip(target, outcomes, strict=True)
    )
    wrong = np.array([0.4, 0.3, 0.2, 0.1, 0.9])
    of_target = np.full(
        2, sum(wrong[i] * examined for i, (_, examined) in zip(target, outcomes, strict=True))
    )
    expected = dict.fromkeys(("ips", "doubly_robust", "support"), 0.0)
    for shown in product(*(choices for choices, _ in outcomes)):
        rows = [
            (item, p, appeal[item] * examined)
            for (item, p), (_, examined) in zip(shown, outcomes, strict=True)
        ]
        predicted = [
            wrong[item] * examined for (item, _), (_, examined) in zip(shown, outcomes, strict=True)
        ]
        probability = np.prod([p for _, p in shown])
        found = lists([rows] * 2, [target] * 2)
        weights = estimators.weigh(found, decay)
        values = {
            "ips": estimators.ips(found, weights).value,
            "doubly_robust": estimators.doubly_robust(
                found, weights, np.array(predicted * 2), of_target
            ).value,
            "support": weights.support,
        }
        for name, value in values.items():
            expected[name] += probability * value
    assert expected["support"] == pytest.approx(1.0)
    assert expected["ips"] == pytest.approx(truth)
    assert expected["doubly_robust"] == pytest.approx(truth)


def test_the_support_is_the_share_that_could_have_come_up() -> None:
    """Item 9 never comes up: half of the target."""
    found = lists([[(1, 0.5, 0.0), (2, 0.5, 0.0)], [(3, 0.5, 0.0), (2, 0.5, 0.0)]], [[1, 9]] * 2)
    assert estimators.weigh(found).support == 0.5


def test_the_reward_model_has_not_seen_the_user() -> None:
    rng = np.random.default_rng(1)
    shown = [[(int(rng.integers(5)), 0.2, float(rng.random() < 0.3))] for _ in range(50)]
    found = lists(shown, [[1]] * 50)
    before, _ = estimators.out_of_fold(found)
    first = np.zeros(50)
    first[0] = 1.0
    changed = replace(found, reward=np.where(first, 1 - found.reward, found.reward))
    after, _ = estimators.out_of_fold(changed)
    assert after[0] == before[0]
    assert not np.array_equal(after, before)


@pytest.mark.parametrize("same_ranks", [True, False])
def test_the_truth_of_the_simulator_is_in_nine_of_ten_intervals(same_ranks: bool) -> None:
    decay = None if same_ranks else LOOK_DECAY
    inside = dict.fromkeys(ESTIMATORS, 0)
    logged = 0
    for seed in range(50):
        seen = list(simulated_lists.visits(seed, 200, 4, same_ranks=same_ranks))
        truth = np.mean([one.truth for one in seen])
        found = simulated_lists.logged_lists(seen)
        weights = estimators.weigh(found, decay)
        require_support(found, weights, OffPolicyRequest(decay=decay))
        for name, estimate in estimators.estimates(found, decay).items():
            low, high = estimate.interval
            inside[name] += bool(low <= truth <= high)
        low, high = estimators.logged(found).interval
        logged += bool(low <= truth <= high)
    assert min(inside.values()) >= 45, inside
    assert logged < 40  # what was logged is no estimate of the target


def request_of(**changes: float) -> OffPolicyRequest:
    return replace(OffPolicyRequest(min_ess=1.0), **changes)  # type: ignore[arg-type]


def many(n: int, item: int) -> LoggedLists:
    return lists([[(1, 1.0, 1.0), (2, 1.0, 0.0)]] * n, [[1, item]] * n)


def test_few_users_are_refused() -> None:
    found = many(49, 2)
    with pytest.raises(NoSupport, match="49 users have lists with exploration"):
        require_support(found, estimators.weigh(found), request_of())


def test_a_target_that_the_log_never_shows_is_refused() -> None:
    found = many(100, 9)
    with pytest.raises(NoSupport, match="shown 50% of the target's items, at least 80%"):
        require_support(found, estimators.weigh(found), request_of())
    require_support(found, estimators.weigh(found), request_of(min_support=0.5))


def test_a_small_effective_sample_is_refused() -> None:
    found = many(100, 2)
    one = np.r_[200.0, np.full(199, 0.1)]
    uneven = Weights(one, one, np.full(100, 2.0))
    with pytest.raises(NoSupport, match="effective sample size is 1, at least 50"):
        require_support(found, uneven, request_of(min_ess=50.0))


def test_weights_that_add_up_to_too_much_are_refused() -> None:
    found = replace(many(100, 2), propensity=np.full(200, 0.25))  # the items always come up
    with pytest.raises(NoSupport, match=r"the weights add up to 4\.0 times what they should"):
        require_support(found, estimators.weigh(found), request_of())

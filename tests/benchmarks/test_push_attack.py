"""Fake accounts push an item: without the limits they succeed, with them they gain nothing."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from afterclick.settings import Settings
from infra.benchmarks.push_attack import AttackPlan, attack_lists
from infra.benchmarks.skip_attack import attack_with_skips
from infra.benchmarks.trend_attack import (
    Attack,
    attack_trends,
    fake_events,
    trend_moments,
    variations,
)
from training.config import AlsConfig, ModelConfig, RankerConfig, TowerConfig
from training.evaluation.reviews import Reviews
from training.evaluation.time_split import cut_of, split_of
from training.fit import ModelTrainer
from training.models.als import implicit_als
from training.models.popularity import without_pushed_rows
from training.protocols import EvaluationSplit

DAY_S = 86_400
START = datetime(2013, 9, 20, tzinfo=UTC)
CUT = "2014-06-07"


@pytest.fixture(scope="module")
def a_shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationSplit, Reviews]:
    """Users with half of the catalogue each who return every three weeks; and rare items."""
    folder, random, rows = tmp_path_factory.mktemp("shop"), np.random.default_rng(4), []
    for user in range(600):
        start = int(random.integers(0, 280))
        chosen = random.choice(30, random.integers(2, 7), replace=False)
        rows += [(start + 20 * n, user, f"i{2 * item + user % 2}") for n, item in enumerate(chosen)]
    rows += [(150 + 10 * n + item, n, f"rare-{item}") for item in range(3) for n in range(12)]
    start = int(START.timestamp())
    rows = [(start + day * DAY_S, user, item) for day, user, item in sorted(rows) if day < 300]
    lines = (f"u{user},{item},{seconds}\n" for seconds, user, item in rows)
    (folder / "reviews.csv").write_text("user_id,item_id,timestamp\n" + "".join(lines))
    titles = (f"i{n},Cable {n},Electronics\n" for n in range(60))
    (folder / "items.csv").write_text("item_id,title,categories\n" + "".join(titles))
    return split_of(Settings(), folder, CUT)


def test_a_push_succeeds_without_the_limits_and_fails_with_them(
    a_shop: tuple[EvaluationSplit, Reviews],
) -> None:
    split, data = a_shop
    config = ModelConfig(
        AlsConfig(rank=8, iterations=3),
        towers=TowerConfig(dim=8, epochs=1),
        ncf=None,
        ranker=RankerConfig(cuts=1, horizon_days=60, queries=300, trees=10),
    )
    trainer = ModelTrainer(config, data.texts, implicit_als)
    found = attack_lists(
        split, trainer, AttackPlan(shares=(0.1,), learned=0.1, targets=1, questions=60)
    )
    rows = {(row["attack"], row["guards"]): row for row in found["rows"]}
    assert len(rows) == 6  # a later row of the same kind, with accounts dated back, replaces it
    assert rows["trends", False]["target_gain"] > 0.2
    assert rows["trends", True]["worst_gain"] <= 0.01
    assert rows["trends and model", False]["target_gain"] > 0.2
    # the model differs from that without an attack: one of these few queries may list the target
    assert rows["trends and model", True]["worst_gain"] < 1.5 / found["questions"]
    assert rows["none", True]["ndcg_change"] > -0.05
    assert rows["none", False]["ndcg_change_interval"] == [0.0, 0.0]
    low, high = rows["trends and model", False]["ndcg_change_interval"]
    assert low < rows["trends and model", False]["ndcg_change"] < high


def test_training_ignores_only_the_fake_votes_for_the_target(
    a_shop: tuple[EvaluationSplit, Reviews],
) -> None:
    split, _ = a_shop
    past = split.log.before(split.cut_ms)
    target = past.item_ids.tolist().index("rare-1")
    attacked = past.merged(fake_events(past, Attack(0.2), target, True, 1))
    learned = without_pushed_rows(attacked)
    of_target = learned.item == target
    assert not np.char.startswith(learned.user_ids[learned.user[of_target]], "fake").any()
    assert of_target.sum() > 0
    assert (attacked.item != target).sum() == (~of_target).sum()


def test_a_repeated_vote_counts_only_without_the_guards(
    a_shop: tuple[EvaluationSplit, Reviews],
) -> None:
    past = a_shop[0].log.before(a_shop[0].cut_ms)
    weights = []
    for guards in (True, False):
        fakes = fake_events(past, Attack(0.1, repeats=5), 0, guards, 1)
        assert (np.diff(fakes.time_ms) >= 0).all()
        assert fakes.time_ms.max() < a_shop[0].cut_ms
        weights.append(fakes.weight[fakes.item == 0].sum())
    assert weights[1] > 4 * weights[0]


def test_attacks_on_trends_are_reported_apart_for_moments_that_no_choice_has_seen(
    a_shop: tuple[EvaluationSplit, Reviews],
) -> None:
    split, _ = a_shop
    days = ("2014-04-20", "2014-05-20", "2014-06-10", "2014-06-25")
    cuts = [cut_of(split.log, day) for day in days]
    usual, patient = Attack(0.1), Attack(0.1, aged_days=14)
    found = attack_trends(trend_moments(split, cuts), [usual, patient], seed=1)
    assert found["tuned"]["moments"] == list(days[:2])
    assert found["unseen"]["moments"] == list(days[2:])
    for name in ("tuned", "unseen"):
        rows = {
            (row["share"], row.get("aged_days", 0), row["guards"]): row
            for row in found[name]["rows"]
        }
        assert rows[0.0, 0, False]["ndcg_change_interval"] == [0.0, 0.0]
        assert rows[0.1, 0, False]["target_gain"] > 0.8
        assert rows[0.1, 0, True]["target_gain"] <= 0.0
        # the limits do not touch the votes of accounts that waited for a week
        assert rows[0.1, 14, True]["target_gain"] > 0.8
        worst = found[name]["worst"]
        assert worst["new_accounts"]["target_gain"] <= 0.0 < worst["aged_accounts"]["target_gain"]


def test_the_attacks_differ_from_the_one_of_the_choice_in_one_property() -> None:
    usual, *others = variations([0.05], fillers=2)
    assert usual == Attack(0.05)
    assert usual.tuned
    assert [other.fillers for other in others if other.tuned] == [5]
    changed = [
        {name for name, value in vars(other).items() if value != vars(usual)[name]}
        for other in others
    ]
    assert all(len(names) <= 1 for names in changed)
    assert set.union(*changed) == {"fillers", "target", "days", "aged_days", "backdated_days"}


def test_accounts_that_date_their_first_events_back_gain_nothing_and_lower_no_rank(
    a_shop: tuple[EvaluationSplit, Reviews],
) -> None:
    moments = trend_moments(a_shop[0], [cut_of(a_shop[0].log, "2014-06-10")])
    backdated = Attack(0.1, backdated_days=365)
    (_, _, _, guarded) = attack_trends(moments, [backdated], seed=1)["unseen"]["rows"]
    assert guarded["target_gain"] <= 0.0
    # as old as they say: the same accounts succeed
    aged = attack_trends(moments, [Attack(0.1, aged_days=365)], seed=1)["unseen"]["rows"][3]
    assert aged["target_gain"] > 0.8
    skips = attack_with_skips(moments)
    assert skips["ranks_lost"] == 0
    assert skips["ranks_lost_without_guards"] > 10

"""A broken or worse challenger does not become champion; a decision states its power."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from afterclick.arrays import Float64Array
from afterclick.model import Model, WordVectors
from tests.scoring.examples import a_model, some_ncf
from training import gate
from training.gate import Questions


def model(n: int = 20) -> Model:
    random = np.random.default_rng(0)
    neighbours = np.tile(np.arange(2, dtype=np.int32), (n, 1)), np.ones((n, 2), np.float32)
    ids = np.array([f"i{i}" for i in range(n)])
    factors = random.normal(size=(n, 4)).astype(np.float32)
    return Model("v", ids, np.ones(n, np.float32), np.zeros(n), *neighbours, *neighbours, factors)


def words(*shape: int, value: float = 1.0) -> WordVectors:
    return WordVectors(np.array(["camera", "usb"]), np.full(shape, value, np.float32))


def test_a_sound_model_passes() -> None:
    assert gate.sanity_check(model()).passed
    assert gate.sanity_check(
        replace(model(), content=np.ones((20, 3), np.float32), words=words(2, 3))
    ).passed


def test_nan_is_rejected() -> None:
    broken = model()
    assert broken.factors is not None
    broken.factors[3, 1] = np.nan
    verdict = gate.sanity_check(broken)
    assert not verdict.passed
    assert "als_item_factors holds NaN" in verdict.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"popularity": np.ones(7, np.float32)}, "popularity has 7 rows for 20 items"),
        ({"factors": np.zeros((20, 4), np.float32)}, "every ALS factor is zero"),
        ({"neighbour_items": np.full((20, 2), 20, np.int32)}, "out of range"),
        ({"item_ids": np.array(["same"] * 20)}, "holds duplicates"),
        ({"words": words(2, 3)}, "do not match"),
        ({"words": words(2, 3), "content": np.ones((20, 4), np.float32)}, "do not match"),
        ({"words": words(2, 3, value=np.nan)}, "content_word_vectors holds NaN"),
    ],
)
def test_a_wrong_shape_is_rejected(change: dict[str, Any], reason: str) -> None:
    verdict = gate.sanity_check(replace(model(), **change))
    assert not verdict.passed
    assert reason in verdict.reason


@pytest.mark.parametrize("name", ["history", "targets", "hidden", "layers", "ages"])
def test_ncf_with_nan_is_refused(name: str) -> None:
    ncf = some_ncf(6)
    assert gate.sanity_check(a_model(ncf=ncf)).passed
    array = getattr(ncf, name).copy()
    array.flat[0] = np.nan
    assert not gate.sanity_check(a_model(ncf=replace(ncf, **{name: array}))).passed
    narrower = replace(ncf, **{name: getattr(ncf, name)[..., :-1]})
    assert "NCF" in gate.sanity_check(a_model(ncf=narrower)).reason


def test_a_model_that_lost_most_items_is_rejected() -> None:
    assert not gate.sanity_check(model(20), champion_items=50).passed
    assert gate.sanity_check(model(30), champion_items=50).passed


def champion_values(questions: int = 4000, seed: int = 2) -> Float64Array:
    """(q,) metric of a champion that finds one target in five."""
    random = np.random.default_rng(seed)
    return random.binomial(1, 0.2, questions) * random.uniform(0.15, 1.0, questions)


def one_each(questions: int = 4000) -> Questions:
    """Every question is of another user."""
    return Questions.unweighted(np.arange(questions))


def lowered(values: Float64Array, loss: float, seed: int = 5) -> Float64Array:
    """The same values with this share of the found targets lost."""
    kept = np.random.default_rng(seed).random(len(values)) >= loss
    return values * kept


def test_equal_and_better_challengers_pass_and_a_worse_one_is_refused() -> None:
    champion = champion_values()
    better = champion + np.where(np.arange(4000) % 20 == 0, 0.1, 0.0)
    assert gate.compare(champion, champion, one_each()).verdict == "passed"
    found = gate.compare(better, champion, one_each())
    assert (found.verdict, found.better) == ("passed", True)
    worse = gate.compare(lowered(champion, 0.3), champion, one_each())
    assert (worse.verdict, worse.worse) == ("refused", True)
    assert "inferior to the champion" in worse.reason


def test_a_small_loss_passes_only_if_the_interval_excludes_the_margin() -> None:
    champion = champion_values(200_000)
    slightly = gate.compare(lowered(champion, 0.02), champion, one_each(200_000))
    assert slightly.verdict == "passed"
    assert slightly.difference == pytest.approx(-0.02, abs=0.005)
    larger = gate.compare(lowered(champion, 0.05), champion, one_each(200_000))
    assert larger.verdict == "refused"


def test_the_margin_decides() -> None:
    champion = champion_values(200_000)
    worse = lowered(champion, 0.06)
    assert gate.compare(worse, champion, one_each(200_000), margin=0.05).verdict == "refused"
    assert gate.compare(worse, champion, one_each(200_000), margin=0.08).verdict == "passed"


def test_too_few_questions_are_undecided_unless_the_challenger_is_shown_to_be_worse() -> None:
    random = np.random.default_rng(3)
    champion, other = (random.permutation(champion_values(400)) for _ in range(2))
    found = gate.compare(other, champion, one_each(400))
    assert found.verdict == "undecided"
    assert found.detectable_loss is not None
    assert found.detectable_loss > 0.05
    assert gate.compare(lowered(champion, 0.9), champion, one_each(400)).verdict == "refused"
    few = gate.compare(champion[:30], champion[:30], one_each(30))
    assert few.verdict == "undecided"
    assert "30 users" in few.reason


def test_the_verdict_states_its_power() -> None:
    champion = champion_values()
    found = gate.compare(lowered(champion, 0.01), champion, one_each())
    assert found.detectable_loss is not None
    assert f"would detect a loss of {found.detectable_loss:.1%} with 80%" in found.reason
    random = np.random.default_rng(7)
    first, second = (random.permutation(champion)[:1000] for _ in range(2))
    again = gate.compare(first, second, one_each(1000))
    assert again.detectable_loss is not None
    assert again.detectable_loss > found.detectable_loss


def test_a_loss_of_the_stated_size_is_shown_four_times_in_five() -> None:
    random = np.random.default_rng(11)
    found = [gate.simulate(random, 2000, "uniform", 0.0) for _ in range(20)]
    stated = float(np.mean([c.detectable_loss for c in found if c.detectable_loss is not None]))
    worse = [gate.simulate(random, 2000, "uniform", -stated).worse for _ in range(300)]
    assert np.mean(worse) == pytest.approx(0.8, abs=0.07)


def test_the_interval_is_by_user() -> None:
    champion = champion_values(1000)
    challenger = np.random.default_rng(4).permutation(champion)
    copies = Questions.unweighted(np.repeat(np.arange(1000), 4))
    once = gate.compare(challenger, champion, one_each(1000))
    four = gate.compare(challenger.repeat(4), champion.repeat(4), copies)
    as_if_independent = gate.compare(challenger.repeat(4), champion.repeat(4), one_each())
    assert four.interval == pytest.approx(once.interval)
    assert once.detectable_loss is not None
    assert as_if_independent.detectable_loss == pytest.approx(once.detectable_loss / 2, rel=0.01)


def test_the_error_agrees_with_a_bootstrap_over_users() -> None:
    random = np.random.default_rng(6)
    user = random.integers(0, 600, 1000)
    champion, challenger = (random.permutation(champion_values(1000)) for _ in range(2))
    questions = Questions(user, random.uniform(0.2, 2.0, 1000), np.ones(1000, bool))
    sums, other = questions.by_user(challenger), questions.by_user(champion)
    drawn = random.integers(0, len(sums), (4000, len(sums)))
    ratios = sums[drawn].sum(axis=1) / other[drawn].sum(axis=1)
    error = gate.relative_error(challenger, champion, questions)
    assert error == pytest.approx(ratios.std(), rel=0.08)


def test_weights_decide_which_questions_count() -> None:
    champion = champion_values()
    half = np.arange(4000) % 2 == 0
    worse_on_half = np.where(half, 0.0, champion)
    everything = gate.compare(worse_on_half, champion, one_each())
    others = Questions(np.arange(4000), np.where(half, 0.0, 1.0), ~half)
    assert everything.verdict == "refused"
    assert gate.compare(worse_on_half, champion, others).verdict == "passed"
    assert others.own_share == pytest.approx(0.5)


def test_metrics_that_are_not_numbers_are_refused() -> None:
    values = np.full(100, np.nan)
    assert gate.compare(values, np.zeros(100), one_each(100)).verdict == "refused"


def test_the_strictest_comparison_decides() -> None:
    champion = champion_values()
    passed = gate.compare(champion, champion, one_each())
    refused = gate.compare(lowered(champion, 0.5), champion, one_each(), "trends")
    missing = gate.not_compared("anchor", "it is gone", 0.08)
    assert gate.decide([passed]).verdict == "passed"
    assert gate.decide([passed, missing]).verdict == "undecided"
    assert "anchor not compared: it is gone" in gate.decide([passed, missing]).reason
    assert gate.decide([passed, missing, refused]).verdict == "refused"
    assert gate.decide([passed], "every factor is zero").verdict == "refused"
    assert gate.decide([]).verdict == "undecided"


def chain(steps: int, *, anchored: bool) -> int:
    """How many challengers are published, each with 4 % fewer hits than the champion before it."""
    first = champion = champion_values(100_000)
    for step in range(steps):
        challenger = lowered(champion, 0.04, seed=100 + step)
        found = [gate.compare(challenger, champion, one_each(100_000))]
        if anchored:
            found.append(gate.compare(challenger, first, one_each(100_000), "anchor", 0.08))
        if gate.decide(found).verdict != "passed":
            return step
        champion = challenger
    return steps


def test_small_losses_do_not_add_up_against_an_anchor() -> None:
    assert chain(10, anchored=False) == 10  # the control: a third of the quality is lost
    assert chain(10, anchored=True) <= 2


def test_the_operating_curve_meets_the_bars() -> None:
    curve = gate.operating_curve(challengers=200, sizes=[16_000])
    assert curve["refused_at_minus_10"] >= gate.MIN_REFUSED
    assert curve["promoted_at_0"] >= gate.MIN_PROMOTED
    few = [gate.operating_curve(challengers=5, sizes=[2_000]) for _ in range(2)]
    assert few[0] == few[1]
    assert all(p["detectable_loss"] > 0.1 for p in few[0]["points"])


@pytest.mark.parametrize("profile", gate.PROFILES)
def test_the_simulated_quality_is_the_nominal_one(profile: gate.Profile) -> None:
    quantiles = np.random.default_rng(1).random(400_000)
    champion = gate.ndcg(quantiles, profile, 0.0, k=10).mean()
    for level in gate.LEVELS:
        found = gate.ndcg(quantiles, profile, level, k=10).mean()
        assert found / champion - 1.0 == pytest.approx(level, abs=0.01)

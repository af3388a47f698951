"""The hostile benchmark: a short form of two attacks."""

from __future__ import annotations

import pytest

from afterclick.errors import BadInput
from afterclick.settings import Settings
from infra.benchmarks.hostile import HostileBenchmark


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_attacks_neither_break_the_api_nor_refuse_the_genuine_client() -> None:
    attacks = ("many_filters", "one_token_sockets")
    benchmark = HostileBenchmark(20.0, 3.0, items=2_000, users=100, scale=0.02, only=attacks)
    figures = benchmark.run(Settings())
    assert [case["name"] for case in figures["cases"]] == list(attacks)
    assert all(case["requests"] >= 12 for case in figures["cases"])
    assert (figures["errors_500"], figures["others_errors"]) == (0, 0)


def test_an_unknown_attack_is_refused() -> None:
    with pytest.raises(BadInput, match="expected one of: slow_headers"):
        HostileBenchmark(only=("flood",)).run(Settings())

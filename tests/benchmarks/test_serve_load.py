"""A small run of `bench serve`: the shop that it makes up is served as a real one would be."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.benchmarks.serve_load import Bench, run


@pytest.mark.timeout(300)
def test_every_answer_of_the_made_up_shop_is_right(
    jars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTERCLICK_REDIS__TIMEOUT_S", "10")  # the served process inherits it
    bench = Bench(rate=40, seconds=2, saturate_s=1, items=8_000, users=60, plain=True)
    figures = run(bench, jars)
    assert (figures["errors"], figures["first_error"]) == (0, None)
    assert figures["requests"] > 0
    assert figures["times_plain"] > 0

"""500 requests of every kind get their frozen answers, from ids and scores to cursors and causes.

A difference is a change of behaviour. Where it is intended, rewrite the answers with
`python -m tests.serving.golden.freeze` and say in the commit what changed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.serving.golden.adapter import run
from tests.serving.golden.comparison import first_difference, frozen, report
from tests.serving.golden.request_specs import COUNT, requests

PAIRS = frozen()
KINDS = sorted({spec["kind"] for spec, _ in PAIRS})


@pytest.mark.parametrize("kind", KINDS)
def test_requests_get_their_frozen_answers(kind: str) -> None:
    asked = [(spec, answer, run(spec)) for spec, answer in PAIRS if spec["kind"] == kind]
    assert asked
    changed = report(asked)
    assert not changed, f"{changed.count(chr(10)) // 2 + 1} of {len(asked)} changed:\n{changed}"


def test_the_frozen_requests_are_the_generated_ones() -> None:
    assert [spec for spec, _ in PAIRS] == requests()
    assert len(PAIRS) == COUNT


def _another_id(answer: Any) -> None:
    answer["items"][3]["id"] = "item-000"


def _another_score(answer: Any) -> None:
    answer["items"][0]["score"] += 1e-3


def _another_part(answer: Any) -> None:
    answer["items"][2]["parts"]["history"] *= 1.001


def _another_source(answer: Any) -> None:
    answer["items"][1]["source"] = "nothing"


def _one_item_less(answer: Any) -> None:
    answer["items"].pop()


def _another_cursor(answer: Any) -> None:
    answer["next"][-1] = "item-000"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (_another_id, r"answer\.items\[3\]\.id: '.*' became 'item-000'"),
        (_another_score, r"answer\.items\[0\]\.score: \S+ became"),
        (_another_part, r"answer\.items\[2\]\.parts\.history: \S+ became"),
        (_another_source, r"answer\.items\[1\]\.source: '.*' became 'nothing'"),
        (_one_item_less, r"length of answer\.items: 10 became 9"),
        (_another_cursor, r"answer\.next\[\d+\]: '.*' became 'item-000'"),
    ],
)
def test_a_changed_answer_is_reported_with_its_request(
    change: Callable[[Any], None], where: str
) -> None:
    spec, answer = next(pair for pair in PAIRS if pair[0]["kind"] == "cursor" and pair[1]["next"])
    changed = copy.deepcopy(answer)
    change(changed)
    text = report([(spec, answer, changed), (spec, answer, answer)])
    assert '"kind":"cursor"' in text
    assert re.search(where, text)
    assert text.count("became") == 1


def test_floats_agree_within_the_tolerance_only() -> None:
    assert first_difference(1.0, 1.0 + 5e-6) is None
    assert first_difference(1.0, 1.0 + 5e-5) is not None
    assert first_difference(1, 1.0) is not None

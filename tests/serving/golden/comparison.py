"""Compares answers: text, ids and order exactly, floats within a tolerance.

reads / writes  answers.json.gz  requests and answers, gzipped JSON
"""

from __future__ import annotations

import gzip
import math
from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from tests.serving.golden.request_specs import Spec

ANSWERS = Path(__file__).parent / "answers.json.gz"
TOLERANCE = 1e-5
"""Relative and absolute: features are float32, and every CPU model adds in another order."""


def freeze(pairs: list[tuple[Spec, Any]], path: Path = ANSWERS) -> None:
    """Write requests and their answers; floats keep 13 significant digits."""
    body = [[spec, _shortened(answer)] for spec, answer in pairs]
    path.write_bytes(gzip.compress(orjson.dumps(body), 9, mtime=0))


def frozen(path: Path = ANSWERS) -> list[tuple[Spec, Any]]:
    """The frozen requests with their answers."""
    pairs = orjson.loads(gzip.decompress(path.read_bytes()))
    return [(spec, answer) for spec, answer in pairs]


def first_difference(expected: Any, actual: Any, path: str = "answer") -> str | None:
    """Where two answers first differ and how; None where they agree."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        if expected.keys() != actual.keys():
            return f"{path}: fields {sorted(expected)} became {sorted(actual)}"
        inside = [(f"{path}.{name}", expected[name], actual[name]) for name in expected]
    elif isinstance(expected, list) and isinstance(actual, list):
        inside = [
            (f"{path}[{at}]", *pair) for at, pair in enumerate(zip(expected, actual, strict=False))
        ]
        if len(expected) != len(actual):
            inside.append((f"length of {path}", len(expected), len(actual)))
    elif isinstance(expected, float) and isinstance(actual, float):
        same = math.isclose(expected, actual, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        return None if same else f"{path}: {expected!r} became {actual!r}"
    else:
        same = type(expected) is type(actual) and expected == actual
        return None if same else f"{path}: {expected!r} became {actual!r}"
    found = (first_difference(old, new, at) for at, old, new in inside)
    return next((text for text in found if text is not None), None)


def report(pairs: list[tuple[Spec, Any, Any]]) -> str:
    """The request and the first difference of each answer that changed; empty where none did."""
    lines = []
    for spec, expected, actual in pairs:
        difference = first_difference(expected, actual)
        if difference is not None:
            lines.append(f"{orjson.dumps(spec).decode()}\n    {difference}")
    return "\n".join(lines)


def counts(specs: list[Spec]) -> Counter[str]:
    """Requests by kind."""
    return Counter(spec["kind"] for spec in specs)


def _shortened(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.13g}")
    if isinstance(value, dict):
        return {name: _shortened(inside) for name, inside in value.items()}
    return [_shortened(inside) for inside in value] if isinstance(value, list) else value

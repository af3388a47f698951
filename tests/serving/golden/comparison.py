"""Compares answers: text, ids and order exactly, floats within a tolerance.

reads / writes  answers.json.gz  requests and answers, gzipped JSON
"""

from __future__ import annotations

import gzip
import hashlib
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tests.serving.golden.request_specs import Spec

ANSWERS = Path(__file__).parent / "answers.json.gz"
TOLERANCE = 1e-9
"""Relative and absolute, where this CPU rounds as the one that froze the answers."""
OTHER_CPU_TOLERANCE = 1e-4
"""Elsewhere: features are float32, and BLAS adds in another order on other CPUs."""


def rounding() -> str:
    """A fingerprint of how this machine's BLAS and LAPACK round."""
    rng = np.random.default_rng(0)
    single = rng.normal(size=(400, 16)).astype(np.float32)
    double = rng.normal(size=(16, 16))
    parts = [single @ single[0], single[:40] @ single.T, np.linalg.solve(double, double[0])]
    parts.append(np.linalg.eigh(double @ double.T)[0])
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


def freeze(pairs: list[tuple[Spec, Any]], path: Path = ANSWERS) -> None:
    """Write requests and their answers; floats keep 13 significant digits."""
    body = {
        "rounding": rounding(),
        "answers": [[spec, _shortened(answer)] for spec, answer in pairs],
    }
    path.write_bytes(gzip.compress(orjson.dumps(body), 9, mtime=0))


def frozen(path: Path = ANSWERS) -> tuple[list[tuple[Spec, Any]], float]:
    """The frozen requests with their answers, and the tolerance for this machine."""
    body = orjson.loads(gzip.decompress(path.read_bytes()))
    tolerance = TOLERANCE if body["rounding"] == rounding() else OTHER_CPU_TOLERANCE
    return [(spec, answer) for spec, answer in body["answers"]], tolerance


def first_difference(
    expected: Any, actual: Any, tolerance: float, path: str = "answer"
) -> str | None:
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
        same = math.isclose(expected, actual, rel_tol=tolerance, abs_tol=tolerance)
        return None if same else f"{path}: {expected!r} became {actual!r}"
    else:
        same = type(expected) is type(actual) and expected == actual
        return None if same else f"{path}: {expected!r} became {actual!r}"
    found = (first_difference(old, new, tolerance, at) for at, old, new in inside)
    return next((text for text in found if text is not None), None)


def report(pairs: list[tuple[Spec, Any, Any]], tolerance: float) -> str:
    """The request and the first difference of each answer that changed; empty where none did."""
    lines = []
    for spec, expected, actual in pairs:
        difference = first_difference(expected, actual, tolerance)
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

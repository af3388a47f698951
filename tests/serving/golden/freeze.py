"""Rewrites the frozen answers; only for an intended change of behaviour.

`python -m tests.serving.golden.freeze`
"""

from __future__ import annotations

from tests.serving.golden.adapter import run
from tests.serving.golden.comparison import ANSWERS, counts, freeze
from tests.serving.golden.request_specs import requests


def main() -> None:
    specs = requests()
    freeze([(spec, run(spec)) for spec in specs])
    for kind, count in counts(specs).items():
        print(f"{count:5}  {kind}")
    print(f"{len(specs):5}  requests in {ANSWERS.stat().st_size:,} bytes: {ANSWERS.name}")


if __name__ == "__main__":
    main()

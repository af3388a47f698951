"""`afterclick simulate` against the real stack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.ui.conftest import Shop, get
from tests.waiting import wait_until

AFTERCLICK = Path(sys.executable).with_name("afterclick")


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [AFTERCLICK, "simulate", *arguments], capture_output=True, text=True, timeout=200
    )


def test_the_state_contains_the_events_of_the_simulated_shoppers(shop: Shop) -> None:
    ran = simulate(
        "--shoppers",
        "8",
        "--visits",
        "4",
        "--pause",
        "0.2",
        "--run",
        "held",
        "--api-url",
        shop.api_url,
        "--json",
    )
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout.splitlines()[-1])
    assert figures["feedback"] > 0
    assert {arm: row["shown"] for arm, row in figures["arms"].items()} == {
        "recommended": 160,
        "popular": 160,
    }

    def held() -> int:
        histories = [get(f"{shop.api_url}/users/held-7-{n}/history?n=200") for n in range(8)]
        return sum(len(history["events"]) for history in histories)

    wait_until(lambda: held() == figures["feedback"], 120)


def test_an_unreachable_api_is_reported_in_one_line() -> None:
    ran = simulate("--shoppers", "2", "--visits", "1", "--api-url", "http://127.0.0.1:9")
    assert ran.returncode == 3
    assert "no answer from the API at http://127.0.0.1:9" in ran.stderr
    assert "Traceback" not in ran.stderr

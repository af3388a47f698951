"""`afterclick bench serve`: how fast the API answers, beside a plain version of the same route.

Starts its own Kafka and Valkey, fills them with a shop, serves it with one worker and asks. While it asks,
state changes arrive at a steady rate, as they do in a shop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import structlog

from infra.benchmarks import synthetic
from infra.benchmarks.host_stalls import watched
from infra.benchmarks.load import Call, Outcome, closed_loop, get, open_loop
from infra.benchmarks.served import changes, cpu_s, reduced_lists, remembered_lists, served
from infra.benchmarks.servers import own_servers
from infra.benchmarks.synthetic import Shop
from infra.embedded.ports import LOOPBACK

log = structlog.get_logger()
N = 10
CLIENTS = 24
PLAIN = ("-m", "infra.benchmarks.baseline")


@dataclass(frozen=True)
class Bench:
    """What to run."""

    rate: float = 300.0
    seconds: float = 20.0
    saturate_s: float = 8.0
    items: int = 60_000
    users: int = 2000
    events_per_s: float = 50.0
    known: float = 0.7
    cold: float = 0.2
    plain: bool = True


def run(bench: Bench, jars: Path) -> dict[str, Any]:
    """Run it all; the figures."""
    with own_servers(jars) as servers:
        settings = servers.settings
        log.info("making the shop", items=bench.items, users=bench.users)
        shop = synthetic.make(settings, bench.items, bench.users)
        calls = mixed_calls(bench, shop)
        figures: dict[str, Any] = {
            "rate": bench.rate,
            "items": bench.items,
            "users": bench.users,
            "workers": 1,
        }
        with changes(settings, shop, bench.events_per_s):
            with served(settings, described=shop.described) as (port, process):
                figures |= _fixed_rate(bench, port, process, calls)
                reduced, remembered = reduced_lists(port), remembered_lists(port)
                figures |= {"max_rps": round(_saturated(bench, port, calls, figures), 1)}
                figures |= {"brief_at_max": reduced_lists(port) - reduced}
                figures |= {"remembered_at_max": remembered_lists(port) - remembered}
            if bench.plain:
                with served(settings, PLAIN) as (port, _):
                    figures |= {
                        "plain_fastapi_max_rps": round(_saturated(bench, port, calls, figures), 1)
                    }
                figures["times_plain"] = round(
                    figures["max_rps"] / figures["plain_fastapi_max_rps"], 2
                )
        return figures


def mixed_calls(bench: Bench, shop: Shop) -> list[Call]:
    """Known users, cold users and similar items, in the shares asked for, in random order."""
    rng = np.random.default_rng(3)
    count = int(max(bench.rate * bench.seconds, 5000))
    kinds = rng.choice(3, count, p=(bench.known, bench.cold, 1 - bench.known - bench.cold))
    users, items = rng.choice(shop.users, count), synthetic.draw(rng, shop, count)
    calls = []
    for i, kind in enumerate(kinds.tolist()):
        if kind == 2:
            item = shop.items[items[i]]
            calls.append(Call(get(f"/similar-items?item_id={item}&n={N}", LOOPBACK), _is_similar))
            continue
        user, source = (str(users[i]), "personalised") if kind == 0 else (f"new-{i}", "trending")
        calls.append(
            Call(get(f"/recommendations?user_id={user}&n={N}", LOOPBACK), _is_list(user, source))
        )
    return calls


def _is_list(user: str, source: str) -> Any:
    def check(raw: bytes) -> str | None:
        body = orjson.loads(raw)
        right = (body["user_id"], body["source"], body["degraded"], len(body["items"]))
        if right != (user, source, False, N):
            return f"wrong answer: {right}"
        off = max(abs(sum(item["contributions"].values()) - item["score"]) for item in body["items"])
        return f"a receipt is off by {off}" if off > 1e-6 else None

    return check


def _is_similar(raw: bytes) -> str | None:
    found = len(orjson.loads(raw)["items"])
    return None if found == N else f"{found} similar items"


def _fixed_rate(
    bench: Bench, port: int, process: psutil.Process, calls: list[Call]
) -> dict[str, Any]:
    warm = calls[: int(bench.rate * 3)]
    asyncio.run(open_loop(LOOPBACK, port, warm, bench.rate))
    before, answered = cpu_s(process), int(bench.rate * bench.seconds)
    reduced, remembered = reduced_lists(port), remembered_lists(port)
    with watched() as machine:
        found = asyncio.run(open_loop(LOOPBACK, port, calls[:answered], bench.rate))
    cpu_ms = (cpu_s(process) - before) * 1000 / max(len(found.latencies_ms), 1)
    _tell("fixed rate", found)
    return {
        "requests": len(found.latencies_ms),
        "errors": len(found.errors),
        "first_error": found.errors[0] if found.errors else None,
        "brief": reduced_lists(port) - reduced,
        "remembered": remembered_lists(port) - remembered,
        **{f"p{name}_ms": round(found.percentile(q), 3) for name, q in QUANTILES.items()},
        "late_p99_ms": round(float(np.percentile(found.late_ms, 99)), 3),
        "cpu_ms_per_request": round(cpu_ms, 3),
        "rss_mb": round(process.memory_info().rss / 2**20),
        **machine.figures(),
    }


QUANTILES = {"50": 50, "95": 95, "99": 99, "999": 99.9}


def _saturated(bench: Bench, port: int, calls: list[Call], figures: dict[str, Any]) -> float:
    asyncio.run(closed_loop(LOOPBACK, port, calls, 2.0, CLIENTS))
    found = asyncio.run(closed_loop(LOOPBACK, port, calls, bench.saturate_s, CLIENTS))
    figures["errors"] = figures.get("errors", 0) + len(found.errors)
    _tell("saturated", found)
    return found.rate


def _tell(what: str, found: Outcome) -> None:
    quantiles = {f"p{name}": round(found.percentile(q), 2) for name, q in QUANTILES.items()}
    log.info(what, rps=round(found.rate, 1), errors=found.errors[:3], **quantiles)

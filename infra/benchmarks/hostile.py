"""`afterclick bench hostile`: what hostile clients cost the others.

Starts its own Kafka and Valkey, and an API for each case, with tokens and a rate limit. A genuine
client requests lists at a steady rate, first alone, then during the attack of
infra/benchmarks/hostile_clients.py, which runs in a process of its own.
"""

from __future__ import annotations

import resource
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from multiprocessing import get_context
from threading import Event

import structlog

from afterclick.errors import BadInput
from afterclick.settings import Settings
from infra.benchmarks.harness import Benchmark, Figures, RunningApi, own_servers, served_shop
from infra.benchmarks.hostile_clients import (
    CASES,
    AttackReport,
    AttackTarget,
    HostileCase,
    get_as,
)
from infra.benchmarks.load import LoadResult, RequestSpec, open_loop
from infra.benchmarks.synthetic import SyntheticShop, build_shop

log = structlog.get_logger()
LIMIT = "6000/minute"
"""Far above what the genuine client and most attacks send: the limit alone does not stop them."""
FILES = 20_000
"""Open files of the API and of the clients, where the system allows as many."""
_SETTLE_S = 3.0
"""From the end of an attack to the second measurement of memory."""
_LONGEST_S = 1_200.0
_GENUINE_USERS = 50


@dataclass(frozen=True)
class HostileResult:
    """What an attack did; field names are keys of `--json`."""

    name: str
    requests: int
    """Requests, or connections, of the attack."""
    refused: int
    """Of these, refused (4xx, 503) or closed."""
    others_p99_ms_before: float
    others_p99_ms_during: float
    others_errors: int
    rss_mb_before: int
    rss_mb_after: int
    errors_500: int


@dataclass(frozen=True)
class HostileBenchmark(Benchmark):
    rate: float = 50.0
    """Requests per second of the genuine client."""
    seconds: float = 20.0
    """Time without an attack, and least length of one."""
    items: int = 26_000
    users: int = 2_000
    scale: float = 1.0
    """Multiplies the requests and connections of each attack."""
    only: tuple[str, ...] = ()
    """Cases to run; empty: all."""

    def run(self, settings: Settings) -> Figures:
        """A row per case. Raises BadInput for an unknown case."""
        cases = _selected(self.only)
        _allow_files()
        secret = secrets.token_hex(32)
        serving = settings.serving.model_copy(update={"token_secret": secret, "limit": LIMIT})
        with own_servers(settings.model_copy(update={"serving": serving})) as servers:
            shop = build_shop(servers.settings, self.items, self.users)
            calls = _genuine_calls(shop, secret)
            results = []
            for case in cases:
                with served_shop(servers.settings, shop.described) as api:
                    results.append(self._measure(case.scaled(self.scale), api, calls, secret))
                log.info("case", **asdict(results[-1]))
        return {
            "cases": [asdict(result) for result in results],
            "worst_others_p99_ms": max(result.others_p99_ms_during for result in results),
            "worst_rss_growth_mb": max(r.rss_mb_after - r.rss_mb_before for r in results),
            "others_errors": sum(result.others_errors for result in results),
            "errors_500": sum(result.errors_500 for result in results),
        }

    def _measure(
        self, case: HostileCase, api: RunningApi, calls: Sequence[RequestSpec], secret: str
    ) -> HostileResult:
        open_loop(api.port, _first(calls, 3 * self.rate), self.rate)
        before = open_loop(api.port, _first(calls, self.rate * self.seconds), self.rate)
        rss_before = api.rss_mb()
        target = AttackTarget(api.port, secret, case.seconds(self.seconds), case.count)
        during, report = self._attacked(case, target, calls)
        time.sleep(_SETTLE_S)
        return HostileResult(
            name=case.name,
            requests=report.requests,
            refused=report.refused,
            others_p99_ms_before=round(before.percentile(99), 1),
            others_p99_ms_during=round(during.percentile(99), 1),
            others_errors=len(before.errors) + len(during.errors),
            rss_mb_before=rss_before,
            rss_mb_after=api.rss_mb(),
            errors_500=report.statuses[500] + sum("HTTP/1.1 500" in e for e in during.errors),
        )

    def _attacked(
        self, case: HostileCase, target: AttackTarget, calls: Sequence[RequestSpec]
    ) -> tuple[LoadResult, AttackReport]:
        """The genuine client's requests from the start to the end of an attack."""
        done = Event()

        def on_end(_: Future[AttackReport]) -> None:
            done.set()

        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(AttackReport).result()  # its imports are no part of the attack
            attack = pool.submit(case.attack, target)
            attack.add_done_callback(on_end)
            during = open_loop(target.port, _first(calls, self.rate * _LONGEST_S), self.rate, done)
            return during, attack.result()


def _selected(only: Sequence[str]) -> list[HostileCase]:
    names = [case.name for case in CASES]
    unknown = sorted(set(only) - set(names))
    if unknown:
        raise BadInput(f"unknown case {', '.join(unknown)}; expected one of: {', '.join(names)}")
    return [case for case in CASES if not only or case.name in only]


def _genuine_calls(shop: SyntheticShop, secret: str) -> list[RequestSpec]:
    """Lists of some users, each with a token; the limit counts each of them alone."""
    target = AttackTarget(0, secret, 1.0, 1)
    return [
        RequestSpec(get_as(f"/recommendations?user_id={user}&n=10", target.header(user)), _no_check)
        for user in shop.users[:_GENUINE_USERS]
    ]


def _no_check(_: bytes) -> str | None:
    """Only the status counts."""
    return None


def _first(calls: Sequence[RequestSpec], count: float) -> list[RequestSpec]:
    return list(islice(cycle(calls), int(count)))


def _allow_files() -> None:
    """Raise this process's limit of open files, which its children inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

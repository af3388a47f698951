"""`afterclick bench serve`: latency and throughput of the API, of lists that no cache holds, and of
a plain version of the same route.

Starts its own Kafka, Valkey and API with a synthetic shop. State changes arrive at a steady rate
meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import orjson
import structlog

from afterclick.arrays import Json
from afterclick.settings import Settings
from infra.benchmarks.checkout import Phase, checkout_api, commit_of, compare
from infra.benchmarks.harness import (
    Benchmark,
    Figures,
    RunningApi,
    ShopTraffic,
    own_servers,
    running_api,
    served_shop,
)
from infra.benchmarks.host_stalls import watch_host
from infra.benchmarks.list_steps import steps_us
from infra.benchmarks.load import LoadResult, RequestSpec, closed_loop, get, open_loop
from infra.benchmarks.synthetic import SyntheticShop, build_shop

log = structlog.get_logger()
N = 10
CLIENTS = 24
WARM_S, SATURATE_WARM_S = 3.0, 2.0
MAX_FRESH_RPS = 2500
"""Fresh lists per second that the closed loop may ask for without repeating a request."""
FRESH_USERS = 300
"""Users whose lists are timed step by step."""


@dataclass(frozen=True)
class RequestMix:
    """Shares of requests for known users and for new users; the rest is for similar items."""

    known: float = 0.7
    new: float = 0.2

    def calls(self, shop: SyntheticShop, count: int) -> list[RequestSpec]:
        """`count` calls in random order."""
        rng = np.random.default_rng(3)
        kinds = rng.choice(3, count, p=(self.known, self.new, 1 - self.known - self.new))
        users, items = rng.choice(shop.users, count), shop.draw(rng, count)
        calls = []
        for i, kind in enumerate(kinds.tolist()):
            if kind == 2:
                path = f"/similar-items?item_id={shop.items[items[i]]}&n={N}"
                calls.append(RequestSpec(get(path), _check_similar))
                continue
            user, source = (str(users[i]), "personalised") if not kind else (f"new-{i}", "trending")
            path = f"/recommendations?user_id={user}&n={N}"
            calls.append(RequestSpec(get(path), _list_check(user, source)))
        return calls


def fresh_calls(shop: SyntheticShop) -> Iterator[RequestSpec]:
    """Endless calls for known users, each of which excludes another unknown item.

    So no two requests are the same, and no list can come from the response cache.
    """
    rng = np.random.default_rng(4)
    for number in count():
        user = shop.users[int(rng.integers(len(shop.users)))]
        path = f"/recommendations?user_id={user}&n={N}&exclude=none-{number}"
        yield RequestSpec(get(path), _list_check(user, "personalised"))


@dataclass(frozen=True)
class ServeBenchmark(Benchmark):
    rate: float = 300.0
    """Requests per second of the open loop."""
    seconds: float = 20.0
    saturate_s: float = 8.0
    items: int = 60_000
    users: int = 2000
    changes_per_s: float = 50.0
    plain: bool = True
    """Also measure infra.benchmarks.baseline, where there is one worker: it is one process."""
    workers: int = 1
    baseline: Path | None = None
    """A checkout of another commit with its environment, whose fresh lists are compared."""

    def run(self, settings: Settings) -> Figures:
        serving = settings.serving.model_copy(update={"workers": self.workers})
        settings = settings.model_copy(update={"serving": serving})
        with own_servers(settings) as servers:
            log.info("building the shop", items=self.items, users=self.users)
            shop = build_shop(servers.settings, self.items, self.users)
            calls = RequestMix().calls(shop, int(max(self.rate * self.seconds, 5000)))
            figures: Figures = {
                "rate": self.rate,
                "items": self.items,
                "users": self.users,
                "workers": self.workers,
            }
            with ShopTraffic(servers.settings, shop).running(self.changes_per_s):
                with served_shop(servers.settings, shop.described) as api:
                    figures["worker_mb"] = api.worker_mb()
                    figures |= self._fixed_rate(api, calls, calls)
                    figures |= self._at_saturation(api, calls, figures)
                    figures["fresh"] = self._fresh(api, shop)
                    figures["worker_mb_after_load"] = api.worker_mb()
                if self.baseline is not None:
                    figures["baseline"] = self._compare(self.baseline, servers.settings, shop)
                if self.plain and self.workers == 1:
                    self._measure_baseline(servers.settings, calls, figures)
            figures["fresh"]["steps_us"] = steps_us(servers.settings, shop, FRESH_USERS, N)
            return figures

    def _fresh(self, api: RunningApi, shop: SyntheticShop) -> Figures:
        """Personalised lists that no cache holds: the requests of one loop after another."""
        loops = (
            int(self.rate * WARM_S),
            int(self.rate * self.seconds),
            int(MAX_FRESH_RPS * (SATURATE_WARM_S + self.saturate_s)),
        )
        calls = fresh_calls(shop)
        warm, fixed, saturating = (list(islice(calls, count)) for count in loops)
        figures = self._fixed_rate(api, warm, fixed)
        return figures | self._at_saturation(api, saturating, figures)

    def _compare(self, folder: Path, settings: Settings, shop: SyntheticShop) -> Figures:
        """Fresh lists of this and of another checkout in turn, both without a response cache."""
        phase = Phase(self.rate, self.seconds, self.saturate_s, CLIENTS)
        asked = phase.fixed + int(MAX_FRESH_RPS * self.saturate_s)
        endless = fresh_calls(shop)
        batches = iter(lambda: list(islice(endless, asked)), [])
        size = (self.items, self.users, self.changes_per_s)
        uncached = settings.serving.model_copy(update={"cache_ttl_s": 0.0})
        settings = settings.model_copy(update={"serving": uncached})
        with (
            checkout_api(folder, *size, settings.home) as theirs,
            served_shop(settings, shop.described) as ours,
        ):
            return {"commit": commit_of(folder)} | compare(ours, theirs, phase, batches)

    def _at_saturation(
        self, api: RunningApi, calls: list[RequestSpec], figures: Figures
    ) -> Figures:
        """Maximum rate, and the lists reduced or reused at it; adds errors to the figures."""
        before = _reused(api)
        rate = round(self._saturate(api, calls, figures), 1)
        return {"max_rps": rate} | {f"{k}_at_max": n for k, n in _reused(api, before).items()}

    def _fixed_rate(
        self, api: RunningApi, warm: list[RequestSpec], calls: list[RequestSpec]
    ) -> Figures:
        open_loop(api.port, warm[: int(self.rate * WARM_S)], self.rate)
        cpu_before, reused_before = api.cpu_s(), _reused(api)
        with watch_host() as stalls:
            result = open_loop(api.port, calls[: int(self.rate * self.seconds)], self.rate)
        cpu_ms = (api.cpu_s() - cpu_before) * 1000 / max(len(result.latencies_ms), 1)
        _log("fixed rate", result)
        return {
            "requests": len(result.latencies_ms),
            "errors": len(result.errors),
            "first_error": next(iter(result.errors), None),
            **_reused(api, reused_before),
            **result.percentiles_ms(digits=3),
            "late_p99_ms": round(float(np.percentile(result.late_ms, 99)), 3),
            "cpu_ms_per_request": round(cpu_ms, 3),
            "rss_mb": api.rss_mb(),
            **stalls.figures(),
        }

    def _saturate(self, api: RunningApi, calls: list[RequestSpec], figures: Figures) -> float:
        """Requests per second of the closed loop; adds its errors to the figures."""
        share = SATURATE_WARM_S / (SATURATE_WARM_S + self.saturate_s)
        warm = int(len(calls) * share)
        closed_loop(api.port, calls[:warm], SATURATE_WARM_S, CLIENTS)
        result = closed_loop(api.port, calls[warm:], self.saturate_s, CLIENTS)
        figures["errors"] += len(result.errors)
        _log("saturated", result)
        return result.rate

    def _measure_baseline(
        self, settings: Settings, calls: list[RequestSpec], figures: Figures
    ) -> None:
        module = ("infra.benchmarks.baseline",)
        with running_api(settings, lambda api: api.model() is not None, module) as api:
            figures["plain_fastapi_max_rps"] = round(self._saturate(api, calls, figures), 1)
        ratio = figures["max_rps"] / figures["plain_fastapi_max_rps"]
        figures["times_plain"] = round(ratio, 2)


def _reused(api: RunningApi, before: dict[str, int] | None = None) -> dict[str, int]:
    """Lists reduced under load, and lists served from the cache, since `before`."""
    counts = {
        "brief": api.metric("afterclick_reduced_lists_total"),
        "remembered": api.metric("afterclick_cached_lists_total"),
    }
    return {name: count - (before or {}).get(name, 0) for name, count in counts.items()}


def _list_check(user: str, source: str) -> Callable[[bytes], str | None]:
    def check(raw: bytes) -> str | None:
        body = orjson.loads(raw)
        actual = (body["user_id"], body["source"], body["degraded"], len(body["items"]))
        if actual != (user, source, False, N):
            return f"wrong response: {actual}"
        error = max(
            abs(sum(item[_receipt(item)].values()) - item["score"]) for item in body["items"]
        )
        return f"contributions and score differ by {error}" if error > 1e-6 else None

    return check


def _receipt(item: Json) -> str:
    """The field of the contributions; commits up to November 2026 called it `parts`."""
    return "contributions" if "contributions" in item else "parts"


def _check_similar(raw: bytes) -> str | None:
    count = len(orjson.loads(raw)["items"])
    return None if count == N else f"{count} similar items"


def _log(phase: str, result: LoadResult) -> None:
    rps = round(result.rate, 1)
    log.info(phase, rps=rps, errors=result.errors[:3], **result.percentiles_ms())

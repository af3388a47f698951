"""What workers tell one another, and how their parts are put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from serving.control.request_log import RECENT, RequestLog
from serving.events.exposures import SentLists
from serving.monitoring import Metrics, merged_text
from serving.peers import Peers, Shared, socket_of


@asynccontextmanager
async def three_workers(folder: Path) -> AsyncIterator[list[Peers]]:
    """Three that answer `number` with their number, and `fails` not at all."""
    workers = [Peers(number, 3, folder) for number in range(3)]

    async def number_of(peers: Peers) -> int:
        return peers.number

    def fail() -> int:
        raise ValueError("a fault of the test")

    for peers in workers:
        peers.answer("number", lambda peers=peers: number_of(peers))
        peers.answer("sum", lambda *terms, peers=peers: sum(terms) + peers.number)
        peers.answer("fails", fail)
        await peers.start()
    yield workers
    for peers in workers:
        await peers.stop()


def test_the_others_answer_in_order(tmp_path: Path) -> None:
    async def ask() -> list[Any]:
        async with three_workers(tmp_path) as workers:
            return [await workers[1].ask("number"), await workers[0].ask("sum", 10, 20)]

    assert asyncio.run(ask()) == [[0, 2], [31, 32]]


def test_workers_that_do_not_answer_are_left_out(tmp_path: Path) -> None:
    async def ask() -> list[Any]:
        async with three_workers(tmp_path) as workers:
            found = [await workers[0].ask("fails"), await workers[0].ask("unknown")]
            await workers[2].stop()
            found.append(await workers[0].ask("number"))
            socket_of(tmp_path, 1).unlink()
            server = await asyncio.start_unix_server(
                lambda reader, writer: asyncio.sleep(60), socket_of(tmp_path, 1)
            )
            found.append(await workers[0].ask("number"))
            server.close()
            return found

    assert asyncio.run(ask()) == [[], [], [1], []]


def test_a_single_worker_has_its_own_part_only() -> None:
    shared = Shared(Peers(), "value", lambda: 3, list)
    assert asyncio.run(shared.read()) == [3]


def test_shared_values_are_merged_from_every_part(tmp_path: Path) -> None:
    async def read() -> list[int]:
        async with three_workers(tmp_path) as workers:
            values = [
                Shared(peers, "parts", lambda factor, n=peers.number: n * factor, sum)
                for peers in workers
            ]
            return [await value.read(10) for value in values]

    assert asyncio.run(read()) == [30, 30, 30]


def test_lists_sent_by_several_processes_add_up() -> None:
    both, parts = SentLists(), [SentLists(), SentLists()]
    for number in range(6):
        for counter in (both, parts[number % 2]):
            counter.add("trending", "m1" if number > 2 else None)
    merged = SentLists.merge([part.report() for part in parts])
    assert merged == SentLists.merge([both.report()])
    assert merged == {("trending", None): 3, ("trending", "m1"): 3}


def test_the_newest_requests_of_several_processes() -> None:
    lists = [[{"time": float(t)} for t in range(59 - n, -1, -2)] for n in range(2)]
    merged = RequestLog.newest(lists)
    assert [row["time"] for row in merged] == [float(t) for t in range(59, 59 - RECENT, -1)]


def test_metrics_of_several_workers_keep_their_values() -> None:
    texts = []
    for number in range(2):
        metrics = Metrics()
        metrics.on_request('/a"b{c} d', 200, 0.01 * (number + 1))
        metrics.lag.set(5 + number)
        texts.append((number, metrics.text().decode()))
    families = list(text_string_to_metric_families(merged_text(texts)))
    assert len({family.name for family in families}) == len(families), "each family once"
    samples = [sample for family in families for sample in family.samples]
    for number, text in texts:
        own = {
            (sample.name, frozenset((sample.labels | {"worker": str(number)}).items())): sample
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        found = {
            (sample.name, frozenset(sample.labels.items())): sample
            for sample in samples
            if sample.labels["worker"] == str(number)
        }
        assert {key: sample.value for key, sample in found.items()} == {
            key: sample.value for key, sample in own.items()
        }
    assert merged_text(texts[:1]) == texts[0][1]

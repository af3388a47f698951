"""Several workers on one port: what one of them knows the others tell; a lost one is replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from websockets.sync.client import connect

from afterclick.events import new_id
from afterclick.settings import Settings
from infra.embedded.kafka import delete_topics, ensure_topics
from infra.embedded.process import afterclick_command
from infra.embedded.server import free_port
from infra.stack.services import http_ok, memory_mib, process_family
from tests.serving import shop
from tests.serving.mini_stream import MiniStream
from tests.serving.running import ids, installation, received
from tests.serving.test_app import busy, environment, kept
from tests.serving.test_experiments import DECIDED_BY, TWO_ARMS
from tests.waiting import PATIENCE_S, wait_until


class WorkerApi:
    """The command `serve --workers N`; each connection stays with the worker that accepted it."""

    def __init__(self, settings: Settings, count: int, **serving: str) -> None:
        self.count, self.port = count, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = settings.home.with_suffix(".workers.log")
        more = {f"AFTERCLICK_SERVING__{name.upper()}": value for name, value in serving.items()}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "infra", "serve", "--workers", str(count)],
                env=environment(settings, self.port) | {"AFTERCLICK_SERVING__AFTER_S": "10"} | more,
                stderr=log,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()

    def log(self) -> str:
        return self._log.read_text()

    def connection(self) -> httpx2.Client:
        """A client with one connection, to any worker."""
        return httpx2.Client(
            base_url=self.url,
            timeout=PATIENCE_S,
            headers={"content-type": "application/json"},
            limits=httpx2.Limits(max_connections=1),
        )

    def connection_to(self, number: int) -> httpx2.Client:
        """A client with one connection, to this worker."""

        def found() -> httpx2.Client | None:
            client = self.connection()
            if health(client).get("worker") == number:
                return client
            client.close()
            return None

        return wait_until(found, what=f"worker {number} accepts a connection")

    def connections(self) -> list[httpx2.Client]:
        """A connection to each worker."""
        return [self.connection_to(number) for number in range(self.count)]

    def rows(self) -> list[dict[str, Any]]:
        """The workers that answer, once all of them do; empty before."""
        with self.connection() as client:
            rows: list[dict[str, Any]] = health(client).get("workers", [])
        return rows if len(rows) == self.count else []

    def serves(self, model: str | None, items: int) -> bool:
        """Whether every worker is ready with this model and so many items."""
        rows = self.rows()
        return bool(rows) and all(
            (row["ready"], row["model"], row["catalogue"]) == (True, model, items) for row in rows
        )


def health(client: httpx2.Client) -> dict[str, Any]:
    """The parts of /health/ready; empty while there is no answer."""
    try:
        parts: dict[str, Any] = client.get("/health/ready").json()["parts"]
    except httpx2.HTTPError:
        return {}
    return parts


def list_for(client: httpx2.Client, user: str, **query: Any) -> dict[str, Any]:
    response = client.get("/recommendations", params={"user_id": user, **query})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def click(client: httpx2.Client, shown: dict[str, Any], rank: int = 0) -> str:
    """Click on an item of a list; the position in the log, once Kafka has accepted it."""
    body = {
        "user_id": shown["user_id"],
        "item_id": shown["items"][rank]["item_id"],
        "action": "click",
        "impression_id": shown["impression_id"],
        "event_id": f"{shown['impression_id']}-{rank}",
    }

    def position() -> str | None:
        response = client.post("/feedback", json=body)
        return response.json()["position"] if response.status_code == 202 else None

    return wait_until(position, what="Kafka takes feedback")


@pytest.fixture(scope="module", params=[2, 4])
def workers(
    broker: str,
    redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[WorkerApi]:
    """An API of several workers with the shop's catalogue and model, and a stream."""
    settings = installation(broker, redis_url, tmp_path_factory.mktemp("home"))
    ensure_topics(settings)
    shop.publish_items(settings, shop.catalogue())
    shop.publish(settings, *shop.write(settings, "m1"))
    with WorkerApi(settings, request.param) as api, MiniStream(settings):
        wait_until(lambda: api.serves("m1", len(shop.catalogue())), what="all workers serve")
        yield api
    delete_topics(settings.kafka)


@pytest.fixture
def clients(workers: WorkerApi) -> Iterator[list[httpx2.Client]]:
    """A connection to each worker."""
    found = workers.connections()
    yield found
    for client in found:
        client.close()


def test_every_worker_explains_the_lists_of_the_others(clients: Sequence[httpx2.Client]) -> None:
    for maker in clients:
        shown = list_for(maker, "ann")
        for client in clients:
            explained = client.get(f"/explain/{shown['impression_id']}")
            assert explained.status_code == 200, explained.text
            assert explained.json() == shown
    assert clients[0].get("/explain/unknown").status_code == 404


def _counts(client: httpx2.Client) -> dict[str, int]:
    rows = client.get("/exposure").json()["rows"]
    return {name: sum(row[name] for row in rows) for name in ("sent", "lists", "items", "clicks")}


def test_reactions_through_another_worker_count_once(clients: Sequence[httpx2.Client]) -> None:
    before = _counts(clients[0])
    user, n = new_id(), 5
    for number, maker in enumerate(clients):
        shown = list_for(maker, user, n=n)
        other = clients[(number + 1) % len(clients)]
        position = click(other, shown, rank=1)
        seen = [list_for(c, user, n=n, after=position, preview=True) for c in clients]
        partition, offset = position.rsplit("/", 1)
        assert all(body["fresh"] for body in seen), "every worker knows the event"
        assert all(body["as_of"][partition] >= int(offset) for body in seen)
    expected = {"sent": 1, "lists": 1, "items": n, "clicks": 1}

    def added(client: httpx2.Client) -> bool:
        return all(
            count - before[name] == expected[name] * len(clients)
            for name, count in _counts(client).items()
        )

    for client in clients:
        wait_until(partial(added, client), what="each list and click counts once")


def test_requests_and_metrics_are_those_of_all(clients: Sequence[httpx2.Client]) -> None:
    user = new_id()

    def of_all_workers(client: httpx2.Client) -> list[Sample] | None:
        """None while a worker is too busy to answer the others."""
        families = text_string_to_metric_families(client.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        found = {sample.labels.get("worker") for sample in samples} - {None}
        return samples if len(found) == len(clients) else None

    def metric(client: httpx2.Client) -> dict[str, float]:
        """Worker → requests of lists."""
        return {
            sample.labels["worker"]: sample.value
            for sample in wait_until(partial(of_all_workers, client))
            if sample.name == "afterclick_requests_total"
            and (sample.labels["route"], sample.labels["status"]) == ("/popular", "200")
        }

    before = metric(clients[0])
    for client in clients:
        assert client.get("/popular", params={"n": 3}).status_code == 200
        list_for(client, user)
    after = metric(clients[-1])
    numbers = map(str, range(len(clients)))
    assert [after[number] - before.get(number, 0.0) for number in numbers] == [1.0] * len(clients)

    def requests(client: httpx2.Client) -> list[dict[str, Any]] | None:
        rows: list[dict[str, Any]] = client.get("/requests").json()["requests"]
        found = sum(user in row["target"] for row in rows)
        return rows if found == len(clients) else None

    for client in clients:
        rows = wait_until(partial(requests, client))
        times = [row["time"] for row in rows]
        assert times == sorted(times, reverse=True)


def test_what_is_stored_is_in_force_in_every_worker(clients: Sequence[httpx2.Client]) -> None:
    first, last = clients[0], clients[-1]
    draft = {"name": new_id(), "salt": "s", **DECIDED_BY, "arms": TWO_ARMS}
    assert first.post("/experiments", json=draft).status_code == 201
    try:
        shown = [list_for(client, "dora") for client in clients for _ in range(3)]
        assert len({body["experiment"]["arm"] for body in shown}) == 1

        def lists() -> int:
            arms = last.get(f"/experiments/{draft['name']}").json()["arms"]
            return sum(arm["lists"] for arm in arms)

        assert wait_until(lists) <= len(shown)
        wait_until(lambda: lists() == len(shown), what="all workers' lists count, each once")
    finally:
        assert last.post(f"/experiments/{draft['name']}/stop", json={}).status_code == 200
    assert "experiment" not in list_for(first, "dora")
    user = new_id()
    assert first.put(f"/users/{user}/interests", json={"interests": ["Cables"]}).status_code == 200
    for client in clients:
        body = list_for(client, user)
        assert body["source"] == "interests"
        assert {item.split("-")[0] for item in ids(body)} == {"cable"}


def test_an_approved_item_is_approved_in_every_worker(clients: Sequence[httpx2.Client]) -> None:
    def approved(client: httpx2.Client, wanted: bool) -> bool:
        return ("camera-1" in client.get("/admin/quarantine").json()["approved"]) is wanted

    for wanted in (True, False):
        body = {"item_id": "camera-1", "approved": wanted}
        assert clients[0].post("/admin/quarantine", json=body).status_code == 200
        for client in clients:
            wait_until(partial(approved, client, wanted))


def test_an_erased_user_is_forgotten_by_every_worker(clients: Sequence[httpx2.Client]) -> None:
    user = new_id()
    shown = [list_for(client, user) for client in clients]
    assert clients[0].delete(f"/users/{user}").status_code == 202

    def forgotten(client: httpx2.Client) -> bool:
        paths = [f"/explain/{body['impression_id']}" for body in shown]
        return all(client.get(path).status_code == 404 for path in paths)

    for client in clients:
        wait_until(partial(forgotten, client))


def test_connections_are_spread_over_all_workers(workers: WorkerApi) -> None:
    """Each takes its share of 64 with a probability of error below 1e-6."""
    with ExitStack() as stack:
        clients = [stack.enter_context(workers.connection()) for _ in range(64)]
        found = Counter(health(client)["worker"] for client in clients)
    assert sorted(found) == list(range(workers.count))
    assert max(found.values()) < 64 / workers.count + 28


def test_live_statistics_are_those_of_all(workers: WorkerApi) -> None:
    url = f"ws://127.0.0.1:{workers.port}/ws"
    n_watching = workers.count * 2
    with ExitStack() as stack:
        for n in range(n_watching):
            socket = stack.enter_context(connect(f"{url}/recommendations?user_id=u{n}"))
            assert received(socket)["type"] == "recommendations"
        live = stack.enter_context(connect(f"{url}/live"))

        def all_are_counted() -> bool:
            message = received(live)
            return bool(message["type"] == "figures" and message["watching"] == n_watching)

        wait_until(all_are_counted)


def test_a_pushed_list_follows_feedback_through_any_worker(
    workers: WorkerApi, clients: Sequence[httpx2.Client]
) -> None:
    user = new_id()
    with connect(f"ws://127.0.0.1:{workers.port}/ws/recommendations?user_id={user}") as socket:
        shown = received(socket)
        for rank, client in enumerate(clients):
            click(client, shown, rank)
            assert received(socket)["cause"]["item_id"] == shown["items"][rank]["item_id"]


def test_a_killed_worker_is_replaced_and_the_others_fail_no_request(workers: WorkerApi) -> None:
    kept, victim = workers.connection_to(0), workers.count - 1
    before = {row["number"]: row["pid"] for row in workers.rows()}
    os.kill(before[victim], signal.SIGKILL)

    def replaced() -> bool:
        assert list_for(kept, "henry")["items"], "a worker that lives serves"
        with workers.connection() as client, suppress(httpx2.HTTPError):  # it may be the lost one's
            assert list_for(client, "henry")["model_version"] == "m1", "and so do new connections"
        rows = {row["number"]: row for row in health(kept)["workers"]}
        return victim in rows and rows[victim]["pid"] != before[victim]

    wait_until(replaced)
    assert health(kept)["worker"] == 0, "the connection was never lost"
    after = {row["number"]: row["pid"] for row in wait_until(workers.rows)}
    assert {n: pid for n, pid in after.items() if n != victim} == {
        n: pid for n, pid in before.items() if n != victim
    }
    new = workers.connection_to(victim)
    assert list_for(new, "henry")["model_version"] == "m1", "it serves once it has loaded its state"
    kept.close()
    new.close()


@pytest.mark.parametrize("count", [2, 4])
def test_the_rate_limit_counts_all_workers(settings: Settings, count: int) -> None:
    with WorkerApi(settings, count, limit="12/hour") as api:
        wait_until(api.rows)
        clients = api.connections()
        answers = [
            clients[n % count].get("/popular", params={"n": 1}).status_code for n in range(14)
        ]
        assert answers == [200] * 12 + [429] * 2
        assert [client.get("/popular").status_code for client in clients] == [429] * count
        for client in clients:
            client.close()


@pytest.mark.parametrize("count", [2, 4])
def test_sigterm_ends_all_workers_without_losing_records(settings: Settings, count: int) -> None:
    with WorkerApi(settings, count) as api:
        pids = [row["pid"] for row in wait_until(api.rows)]
        accepted, shown = busy(api.url)
        api.process.send_signal(signal.SIGTERM)
        assert api.process.wait(PATIENCE_S) == 0
        assert not any(psutil.pid_exists(pid) for pid in pids)
    topics = settings.kafka.topics
    assert accepted <= kept(settings, topics.feedback), "an accepted event is lost"
    assert shown <= kept(settings, topics.impressions), "an impression is lost"


def test_workers_end_with_a_parent_that_is_killed(settings: Settings) -> None:
    with WorkerApi(settings, 2) as api:
        family = [psutil.Process(row["pid"]) for row in wait_until(api.rows)]
        api.process.kill()
        _, alive = psutil.wait_procs(family, PATIENCE_S)
        assert not alive


def test_the_supervisor_counts_and_kills_all_of_them(settings: Settings) -> None:
    port = free_port()
    serving = settings.serving.model_copy(update={"port": port, "workers": 2})
    own = settings.model_copy(update={"serving": serving})
    process = afterclick_command(own, "serve", "serve")
    process.start()
    try:
        wait_until(lambda: http_ok(f"{own.serving.url}/health/live"))
        wait_until(lambda: len(process_family(process.pid)) == 3)
        family, memory = process_family(process.pid), memory_mib(process.pid)
        assert memory is not None
        assert memory > family[0].memory_info().rss / 2**20
    finally:
        process.kill()
    assert not psutil.wait_procs(family, PATIENCE_S)[1]


def test_workers_that_cannot_start_end_with_the_reason(settings: Settings) -> None:
    with WorkerApi(settings, 2, limit="many") as api:
        assert api.process.wait(PATIENCE_S) == 3
        assert "AFTERCLICK_SERVING__LIMIT" in api.log()
        assert "before it served" in api.log()

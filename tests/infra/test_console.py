"""The admin console with real child processes: replay, simulation, models, faults, the recount."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import orjson
import psutil
import pytest
import redis

from afterclick.arrays import Json
from afterclick.errors import BadInput
from afterclick.events import new_id
from afterclick.io.home import (
    FRESH_S,
    PartRecord,
    ReplayControl,
    ReplayStatus,
    StackRecord,
)
from afterclick.settings import (
    ApiKey,
    ConsoleSettings,
    RedisSettings,
    ServingSettings,
    Settings,
)
from infra.console import admin_app
from infra.embedded.process import Process, afterclick_command
from infra.embedded.server import LOOPBACK, ValkeyServer, free_port
from infra.stack.services import http_ok
from tests.infra.running_console import RunningConsole
from tests.serving import shop
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running
from tests.waiting import PATIENCE_S, wait_until


@dataclass(frozen=True)
class Installation:
    """An API with a catalogue and model `m1`, and the admin console of the same settings."""

    settings: Settings
    api: Running
    console: RunningConsole


@pytest.fixture
def faulty(settings: Settings) -> Settings:
    """Settings that allow fault injection, with known ports."""
    serving = ServingSettings(port=free_port())
    console = ConsoleSettings(port=free_port(), fault_injection=True)
    return settings.model_copy(update={"serving": serving, "console": console})


@pytest.fixture
def console(faulty: Settings) -> Iterator[RunningConsole]:
    """A console alone: no API runs."""
    with RunningConsole(faulty) as running:
        yield running


@pytest.fixture
def installation(faulty: Settings) -> Iterator[Installation]:
    with MiniStream(faulty), installed(faulty) as found:
        yield found


@contextmanager
def installed(settings: Settings) -> Iterator[Installation]:
    with Running(settings, settings.serving.port) as api, RunningConsole(settings) as console:
        api.ready()
        shop.publish_items(settings, shop.wide_catalogue())
        shop.publish(settings, *shop.write(settings, "m1"))
        wait_until(lambda: api.service.snapshots.current.loaded.version == "m1")
        wait_until(lambda: len(api.service.catalogue) == len(shop.wide_catalogue()))
        yield Installation(settings, api, console)


def sha256_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def simulator(console: RunningConsole) -> dict[str, Any]:
    state: dict[str, Any] = console.state()["simulator"]
    return state


def test_without_a_replay_nothing_can_be_paused(console: RunningConsole) -> None:
    assert console.state()["replay"] is None
    assert "no replay runs" in console.post("replay", {"state": "paused"}, 409)["detail"]


def test_a_replay_that_ended_is_not_active_and_keeps_its_control(
    console: RunningConsole, faulty: Settings
) -> None:
    status = ReplayStatus(
        state="done",
        dataset="shop",
        sent=5,
        delivered=5,
        total=5,
        rate=0,
        event_time_ms=1,
        shift_ms=0,
        eta_s=None,
        kafka_away=False,
        updated_ms=1,
    )
    status.write(faulty.home)
    assert console.state()["replay"]["active"] is False
    console.post("replay", {"rate": 5}, 409)
    assert ReplayControl.read(faulty.home) is None


@contextmanager
def running_replay(settings: Settings, output: list[str]) -> Iterator[Process]:
    """A replay of 5,000 reviews, 50 a second."""
    rows = "".join(f"u{n % 9},camera-{n % 7},{1_400_000_000 + 60 * n}\n" for n in range(5000))
    file = settings.home / "shop.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"user_id,item_id,timestamp\n{rows}")
    arguments = ("ingest", "replay", str(file), "--rate", "50", "--json")
    replay = afterclick_command(settings, "replay", *arguments, on_output=output.append)
    replay.start()
    try:
        yield replay
    finally:
        replay.stop()


def test_a_running_replay_is_paused_and_its_pace_changed(
    console: RunningConsole, faulty: Settings
) -> None:
    output: list[str] = []
    with running_replay(faulty, output) as replay:
        wait_until(lambda: (console.state()["replay"] or {}).get("delivered", 0) > 10)
        assert console.state()["replay"]["pace"] == "50 events/s"
        console.post("replay", {"state": "paused"})
        wait_until(lambda: console.state()["replay"]["state"] == "paused")
        sent = console.state()["replay"]["sent"]
        console.post("replay", {"speed": "1h/s"})
        wait_until(lambda: console.state()["replay"]["pace"] == "1h/s")
        assert console.state()["replay"]["sent"] == sent
        console.post("replay", {"state": "running"})
        wait_until(lambda: console.state()["replay"]["sent"] > sent)
        console.post("replay", {"speed": "max"})
        wait_until(lambda: not replay.running)
        assert replay.wait() == 0, replay.tail()
        assert orjson.loads(output[-1])["sent"] == 5000


@pytest.mark.parametrize(
    ("path", "body", "continues"),
    [("reconcile", None, True), ("replay", {"state": "paused"}, False)],
    ids=["recount", "control"],
)
def test_a_replay_held_for_a_recount_continues_after_a_kill_of_the_console(
    faulty: Settings, path: str, body: Json | None, continues: bool
) -> None:
    """The recount waits for the stream, which does not run; an administrator's pause stays."""

    def status() -> ReplayStatus:
        return wait_until(lambda: ReplayStatus.read(faulty.home))

    console = afterclick_command(faulty, "console", "console")
    console.start()
    url = f"{faulty.console.url}/admin"
    with running_replay(faulty, []), httpx2.Client(trust_env=False) as http:
        wait_until(lambda: status().delivered > 10)
        wait_until(lambda: http_ok(f"{url}/console"))
        assert http.post(f"{url}/{path}", json=body or {}).is_success
        wait_until(lambda: status().state == "paused")
        time.sleep(FRESH_S + 1)
        held = status()
        assert held.state == "paused"
        console.kill()
        time.sleep(FRESH_S + 1)
        wait_until(lambda: status().updated_ms > held.updated_ms)
        if continues:
            wait_until(lambda: status().sent > held.sent)
        assert (status().sent > held.sent) is continues


@pytest.mark.parametrize(
    "pace", [{"speed": "fast"}, {"rate": -1}, {"rate": 5, "speed": "max"}, {"state": "x"}]
)
def test_an_invalid_pace_is_rejected(console: RunningConsole, pace: dict[str, Any]) -> None:
    console.post("replay", pace, 422)


def test_a_simulation_is_started_changed_and_stopped(installation: Installation) -> None:
    console = installation.console
    console.post("simulator", {"shoppers": 4, "pause_s": 0.1})
    try:
        wait_until(lambda: simulator(console)["figures"].get("feedback", 0) > 3)
        assert "is running" in console.post("simulator", {}, 409)["detail"]
        console.post("simulator/steer", {"hot": ["camera-1"], "drift": 0.5})
        assert simulator(console)["plan"]["hot"] == ["camera-1"]
        rounds = simulator(console)["figures"]["round"]
        wait_until(lambda: simulator(console)["figures"]["round"] > rounds + 1)
    finally:
        console.post("simulator/stop")
    assert simulator(console)["running"] is False
    problem = console.post("simulator/steer", {"drift": 0.1}, 409)
    assert "no simulation is running" in problem["detail"]


def test_resent_events_are_dropped_and_the_recount_finds_no_difference(
    installation: Installation,
) -> None:
    api, console = installation.api, installation.console
    events = 20
    for n in range(events):
        position = api.feedback(f"user-{n % 3}", f"camera-{n}", event_id=new_id())
    wait_until(lambda: api.list_for("user-1", after=position)["fresh"])
    console.post("simulator", {"shoppers": 4, "pause_s": 0.1})  # paused during the recount
    try:
        assert "a second time" in console.post("faults/duplicates")["done"]
        assert "3 s" in console.post("faults/redis")["done"]
        console.post("reconcile", status=202)
        assert "wait for it" in console.post("reconcile", status=409)["detail"]
        job = console.finished("reconcile")
    finally:
        console.post("simulator/stop")
    assert job["state"] == "done", job
    assert job["answer"]["differences"] == 0
    assert job["answer"]["duplicates"] >= events
    assert [fault["fault"] for fault in console.state()["faults"]] == ["redis", "duplicates"]


def test_the_recount_reports_differences(installation: Installation) -> None:
    api, settings = installation.api, installation.settings
    position = api.feedback("bob", "camera-3")
    wait_until(lambda: api.list_for("bob", after=position)["fresh"])
    with redis.Redis.from_url(settings.redis.url) as client:
        topic = settings.kafka.topics.feedback
        for partition in range(settings.kafka.partitions):
            client.hincrby(settings.redis.keys.counts(topic, partition), "camera-3", 1)
    installation.console.post("reconcile", status=202)
    job = installation.console.finished("reconcile")
    assert job["state"] == "failed"
    assert job["answer"]["differences"] > 0


def test_lists_are_served_while_redis_is_paused(faulty: Settings, own_redis: ValkeyServer) -> None:
    # far longer than the API waits; `CLIENT UNPAUSE` is blocked, too
    console = faulty.console.model_copy(update={"redis_pause_s": 10.0})
    redis_settings = RedisSettings(url=own_redis.address, timeout_s=1.0)
    impatient = faulty.model_copy(update={"redis": redis_settings, "console": console})
    with MiniStream(impatient), installed(impatient) as shop_with_console:
        api = shop_with_console.api
        wait_until(lambda: not api.list_for("bob", n=5)["degraded"])
        shop_with_console.console.post("faults/redis")
        body = api.list_for("bob", n=5)
        assert body["degraded"]
        assert len(body["items"]) == 5
        wait_until(lambda: not api.list_for("bob", n=5)["degraded"])


def test_the_stream_job_of_the_stack_is_killed_and_no_other_process(
    console: RunningConsole, faulty: Settings
) -> None:
    assert "no stack runs" in console.post("faults/stream", status=409)["detail"]
    victim, bystander = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
    try:
        parts = (
            PartRecord(name="serve", state="ready", pid=bystander.pid, restarts=0),
            PartRecord(name="stream", state="ready", pid=victim.pid, restarts=0),
        )
        StackRecord(running=True, pid=1, parts=parts).write(faulty.home)
        assert str(victim.pid) in console.post("faults/stream")["done"]
        assert victim.wait(PATIENCE_S) == -9
        assert bystander.poll() is None
        old = time.time() - 60
        os.utime(StackRecord.path(faulty.home), (old, old))
        assert "no stack runs" in console.post("faults/stream", status=409)["detail"]
    finally:
        for process in (victim, bystander):
            process.kill()
            process.wait()


def test_without_the_setting_no_fault_is_injected(settings: Settings) -> None:
    quiet = settings.model_copy(update={"console": ConsoleSettings(port=free_port())})
    with RunningConsole(quiet) as console:
        for fault in ("stream", "redis", "duplicates"):
            assert "FAULT_INJECTION" in console.post(f"faults/{fault}", status=403)["detail"]
        console.post("faults/everything", status=422)
        assert console.state()["fault_injection"] is False


def test_a_page_of_another_origin_controls_nothing(console: RunningConsole) -> None:
    for origin, status in (("http://evil.example", 403), (console.url, 200)):
        response = console.http.post("/admin/simulator/stop", headers={"origin": origin})
        assert response.status_code == status
    other_host = console.http.get("/admin/console", headers={"host": "shop.example"})
    assert other_host.status_code == 403


CHANGES = (
    "replay",
    "simulator",
    "simulator/steer",
    "simulator/stop",
    "models/list",
    "models/train",
    "models/promote",
    "models/rollback",
    "reconcile",
    "faults/{fault}",
)
"""Every route of the console that is no read."""


def test_a_request_that_browsers_send_without_asking_controls_nothing(
    console: RunningConsole,
) -> None:
    paths = console.http.get("/openapi.json").json()["paths"]
    written = {path for path, operations in paths.items() if operations.keys() != {"get"}}
    assert written == {f"/admin/{path}" for path in CHANGES}
    for path in CHANGES:
        for kind in ("", "text/plain", "application/x-www-form-urlencoded"):
            url = f"/admin/{path.format(fault='stream')}"
            response = console.http.post(url, content="{}", headers={"content-type": kind})
            assert response.status_code == 422, (path, kind)
            assert "needs content-type" in response.json()["detail"], (path, kind)
    assert console.post("simulator/stop") == {"done": "stopped"}, "the control: with JSON"


def test_every_route_needs_a_key_with_the_scope_admin(faulty: Settings) -> None:
    keys = {
        "shop": ApiKey(sha256=sha256_of("s-key"), scopes=("recommend", "feedback")),
        "administrator": ApiKey(sha256=sha256_of("a-key"), scopes=("admin",)),
    }
    serving = faulty.serving.model_copy(update={"keys": keys})
    with RunningConsole(faulty.model_copy(update={"serving": serving})) as console:
        routes = console.http.get("/openapi.json").json()["paths"].items()
        guarded = [(path, m) for path, methods in routes for m in methods if "admin" in path]
        assert len(guarded) >= 11
        for path, method in guarded:
            url = path.format(fault="none")
            assert console.http.request(method, url).status_code == 401
            bearer = {"authorization": "Bearer s-key"}
            assert console.http.request(method, url, headers=bearer).status_code == 403
        console.http.headers["authorization"] = "Bearer a-key"
        console.state()


def test_beyond_loopback_the_console_needs_keys(settings: Settings) -> None:
    exposed = ConsoleSettings(host="0.0.0.0", port=free_port())
    with pytest.raises(BadInput, match="API keys"):
        admin_app.serve(settings.model_copy(update={"console": exposed}))


def test_the_connections_of_the_console_are_limited_by_its_settings(settings: Settings) -> None:
    limited = ConsoleSettings(port=0, max_connections=1)
    with (
        RunningConsole(settings.model_copy(update={"console": limited})) as console,
        socket.create_connection((LOOPBACK, console.port), PATIENCE_S),
        socket.create_connection((LOOPBACK, console.port), PATIENCE_S) as excess,
    ):
        assert excess.recv(1000).startswith(b"HTTP/1.1 503")


@pytest.mark.slow
def test_models_are_listed_promoted_and_rolled_back(installation: Installation) -> None:
    from training.mlflow_registry import MlflowRegistry

    api, console, settings = installation.api, installation.console, installation.settings
    registry = MlflowRegistry(settings)
    registry.experiment()
    for version in ("m1", "m2"):
        folder = settings.artifacts / version
        if version == "m2":
            shop.write(settings, version)
        run_id = registry.start(version, {}, {"version": version})
        registry.register(folder, run_id, {"rows": "60"})
    registry.sync_aliases("m1")
    console.post("models/list", status=202)
    answer = console.finished("models")["answer"]
    assert {m["version"]: (m["served"], m["aliases"]) for m in answer["models"]} == {
        "m1": (True, ["champion"]),
        "m2": (False, ["challenger"]),
    }
    console.post("models/promote", {"version": "m2"}, 202)
    assert console.finished("promote")["answer"]["version"] == "m2"
    wait_until(lambda: api.get("/models")["serving"] == "m2")
    console.post("models/rollback", status=202)
    assert console.finished("promote")["answer"]["version"] == "m1"
    wait_until(lambda: api.get("/models")["serving"] == "m1")
    console.post("models/promote", {"version": "m9"}, 202)
    job = console.finished("promote")
    assert job["state"] == "failed"
    assert "no model 'm9'" in job["error"]
    console.post("models/promote", {"version": "--help"}, 422)


def test_a_training_reports_its_progress_and_why_it_failed(console: RunningConsole) -> None:
    console.post("models/train", status=202)
    wait_until(lambda: (console.state()["training"] or {}).get("state") == "training")
    job = console.finished("train")  # there is no event archive
    assert job["state"] == "failed"
    assert "no event archive" in job["error"]
    training = console.state()["training"]
    assert training["state"] == "stopped"
    assert "no event archive" in training["last"]


def test_a_simulation_ends_with_the_console(faulty: Settings) -> None:
    with RunningConsole(faulty) as console:
        console.post("simulator", {"shoppers": 2})
        pid = console.app.state.console.simulation.pid
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)

"""What an administrator steers, with real children: replay, simulator, models, faults, the recount."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
import redis

from afterclick.events import new_id
from afterclick.io.home import PartRecord, ReplayControl, ReplayStatus, StackRecord
from afterclick.settings import RedisSettings, ServingSettings, Settings
from infra.embedded.ports import free_port
from infra.embedded.valkey import ValkeyServer
from serving.operations import console as controls
from tests.serving import shop
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running
from tests.waiting import PATIENCE_S, wait_until


@pytest.fixture
def breakable(settings: Settings) -> Settings:
    """The settings of an installation that may be broken, its API on a port that children know."""
    serving = ServingSettings(port=free_port(), break_it=True)
    return settings.model_copy(update={"serving": serving})


@pytest.fixture
def admin_api(breakable: Settings, stream: MiniStream) -> Iterator[Running]:
    with shop_of(breakable) as api:
        yield api


@contextmanager
def shop_of(settings: Settings) -> Iterator[Running]:
    """The API of a shop with a catalogue and model `m1`."""
    with Running(settings, settings.serving.port) as api:
        api.ready()
        shop.publish_items(settings, shop.wide_catalogue())
        shop.publish(settings, *shop.write(settings, "m1"))
        wait_until(lambda: api.service.snapshots.current.loaded.version == "m1")
        wait_until(lambda: len(api.service.catalogue) == len(shop.wide_catalogue()))
        yield api


def post(
    api: Running, path: str, body: dict[str, Any] | None = None, status: int = 200
) -> dict[str, Any]:
    response = api.http.post(path, json=body or {})
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


def console(api: Running) -> dict[str, Any]:
    return api.get("/admin/console")


def finished(api: Running, job: str, timeout: float = 120) -> dict[str, Any]:
    """The job once it has ended."""
    found: dict[str, Any] = wait_until(
        lambda: _ended(console(api)["jobs"].get(job)), timeout, what=job
    )
    return found


def _ended(job: dict[str, Any] | None) -> dict[str, Any] | None:
    return job if job and job["state"] != "running" else None


def test_nothing_was_replayed_yet_and_so_nothing_can_be_paused(admin_api: Running) -> None:
    assert console(admin_api)["replay"] is None
    problem = post(admin_api, "/admin/replay", {"state": "paused"}, 409)
    assert "no replay runs" in problem["detail"]


def test_a_replay_that_ended_is_not_active_and_keeps_its_control(
    admin_api: Running, breakable: Settings
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
    status.write(breakable.home)
    assert console(admin_api)["replay"]["active"] is False
    post(admin_api, "/admin/replay", {"rate": 5}, 409)
    assert ReplayControl.read(breakable.home) is None


def test_a_running_replay_is_paused_and_its_pace_changed(
    admin_api: Running, breakable: Settings
) -> None:
    rows = "".join(f"u{n % 9},camera-{n % 7},{1_400_000_000 + 60 * n}\n" for n in range(5000))
    file = breakable.home / "shop.csv"
    file.write_text(f"user_id,item_id,timestamp\n{rows}")
    command = [sys.executable, "-m", "infra", "ingest", "replay", file, "--rate", "50", "--json"]
    env = {**os.environ, **breakable.environment()}
    replay = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        wait_until(lambda: (console(admin_api)["replay"] or {}).get("delivered", 0) > 10)
        assert console(admin_api)["replay"]["pace"] == "50 events/s"
        post(admin_api, "/admin/replay", {"state": "paused"})
        wait_until(lambda: console(admin_api)["replay"]["state"] == "paused")
        held = console(admin_api)["replay"]["sent"]
        post(admin_api, "/admin/replay", {"speed": "1h/s"})
        wait_until(lambda: console(admin_api)["replay"]["pace"] == "1h/s")
        assert console(admin_api)["replay"]["sent"] == held
        post(admin_api, "/admin/replay", {"state": "running"})
        wait_until(lambda: console(admin_api)["replay"]["sent"] > held)
        post(admin_api, "/admin/replay", {"speed": "max"})
        out, _ = replay.communicate(timeout=PATIENCE_S)
        assert orjson.loads(out.splitlines()[-1])["sent"] == 5000
    finally:
        replay.kill()
        replay.wait()


@pytest.mark.parametrize(
    "pace", [{"speed": "fast"}, {"rate": -1}, {"rate": 5, "speed": "max"}, {"state": "x"}]
)
def test_a_pace_that_is_none_is_refused(admin_api: Running, pace: dict[str, Any]) -> None:
    post(admin_api, "/admin/replay", pace, 422)


def test_shoppers_shop_are_steered_and_go_home(admin_api: Running) -> None:
    post(admin_api, "/admin/simulator", {"shoppers": 4, "pause_s": 0.1})
    try:
        wait_until(lambda: console(admin_api)["simulator"]["figures"].get("feedback", 0) > 3)
        assert "shop already" in post(admin_api, "/admin/simulator", {}, 409)["detail"]
        post(admin_api, "/admin/simulator/steer", {"hot": ["camera-1"], "drift": 0.5})
        assert console(admin_api)["simulator"]["plan"]["hot"] == ["camera-1"]
        rounds = console(admin_api)["simulator"]["figures"]["round"]
        wait_until(lambda: console(admin_api)["simulator"]["figures"]["round"] > rounds + 1)
    finally:
        post(admin_api, "/admin/simulator/stop")
    assert console(admin_api)["simulator"]["running"] is False
    assert (
        "nobody shops" in post(admin_api, "/admin/simulator/steer", {"drift": 0.1}, 409)["detail"]
    )


def test_resent_events_are_refused_and_the_recount_finds_no_difference(admin_api: Running) -> None:
    events = 20
    for n in range(events):
        position = admin_api.tell(f"user-{n % 3}", f"camera-{n}", event_id=new_id())
    wait_until(lambda: admin_api.list_for("user-1", after=position)["fresh"])
    post(
        admin_api, "/admin/simulator", {"shoppers": 4, "pause_s": 0.1}
    )  # stands still for the recount
    try:
        assert "a second time" in post(admin_api, "/admin/break/duplicates")["done"]
        assert "3 s" in post(admin_api, "/admin/break/redis")["done"]
        post(admin_api, "/admin/reconcile", status=202)
        assert "wait for it" in post(admin_api, "/admin/reconcile", status=409)["detail"]
        job = finished(admin_api, "reconcile")
    finally:
        post(admin_api, "/admin/simulator/stop")
    assert job["state"] == "done", job
    assert job["answer"]["differences"] == 0
    assert job["answer"]["duplicates"] >= events
    assert [fault["fault"] for fault in console(admin_api)["faults"]] == ["redis", "duplicates"]


def test_the_recount_says_what_differs(admin_api: Running, breakable: Settings) -> None:
    position = admin_api.tell("bob", "camera-3")
    wait_until(lambda: admin_api.list_for("bob", after=position)["fresh"])
    with redis.Redis.from_url(breakable.redis.url) as client:
        topic = breakable.kafka.topics.feedback
        for partition in range(breakable.kafka.partitions):
            client.hincrby(breakable.redis.keys.counts(topic, partition), "camera-3", 1)
    post(admin_api, "/admin/reconcile", status=202)
    job = finished(admin_api, "reconcile")
    assert job["state"] == "failed"
    assert job["answer"]["differences"] > 0


def test_lists_still_come_while_redis_is_held_up(
    breakable: Settings, own_redis: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # far longer than the API waits; nothing ends it early, `CLIENT UNPAUSE` is held up too
    monkeypatch.setattr(controls, "HELD_S", 10.0)
    impatient = breakable.model_copy(
        update={"redis": RedisSettings(url=own_redis.address, timeout_s=1.0)}
    )
    with MiniStream(impatient), shop_of(impatient) as api:
        wait_until(lambda: not api.list_for("bob", n=5)["degraded"])
        post(api, "/admin/break/redis")
        body = api.list_for("bob", n=5)
        assert body["degraded"]
        assert len(body["items"]) == 5
        wait_until(lambda: not api.list_for("bob", n=5)["degraded"])


def test_the_stream_job_of_the_stack_is_killed_and_no_other_process(
    admin_api: Running, breakable: Settings
) -> None:
    assert "no stack runs" in post(admin_api, "/admin/break/stream", status=409)["detail"]
    victim, bystander = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
    try:
        parts = (
            PartRecord(name="serve", state="ready", pid=bystander.pid, restarts=0),
            PartRecord(name="stream", state="ready", pid=victim.pid, restarts=0),
        )
        StackRecord(running=True, pid=1, parts=parts).write(breakable.home)
        assert str(victim.pid) in post(admin_api, "/admin/break/stream")["done"]
        assert victim.wait(PATIENCE_S) == -9
        assert bystander.poll() is None
        old = time.time() - 60
        path = StackRecord.path(breakable.home)
        os.utime(path, (old, old))
        assert "no stack runs" in post(admin_api, "/admin/break/stream", status=409)["detail"]
    finally:
        for process in (victim, bystander):
            process.kill()
            process.wait()


def test_without_the_setting_nothing_is_broken(shop_api: Running) -> None:
    for fault in ("stream", "redis", "duplicates"):
        assert "BREAK_IT" in post(shop_api, f"/admin/break/{fault}", status=403)["detail"]
    post(shop_api, "/admin/break/everything", status=422)
    assert console(shop_api)["break_it"] is False


def test_a_foreign_page_steers_nothing(admin_api: Running) -> None:
    response = admin_api.http.post(
        "/admin/simulator/stop", headers={"origin": "http://evil.example"}
    )
    assert response.status_code == 403
    assert (
        admin_api.http.post("/admin/simulator/stop", headers={"origin": admin_api.url}).status_code
        == 200
    )


@pytest.mark.slow
def test_models_are_listed_promoted_and_rolled_back(
    admin_api: Running, breakable: Settings
) -> None:
    from training.mlflow_registry import MlflowRegistry

    registry = MlflowRegistry(breakable)
    registry.experiment()
    for version in ("m1", "m2"):
        folder = breakable.artifacts / version
        if version == "m2":
            shop.write(breakable, version)
        run_id = registry.start(version, {}, {"version": version})
        registry.register(folder, run_id, {"rows": "60"})
    registry.follow("m1")
    post(admin_api, "/admin/models/list", status=202)
    answer = finished(admin_api, "models")["answer"]
    assert {m["version"]: (m["served"], m["aliases"]) for m in answer["models"]} == {
        "m1": (True, ["champion"]),
        "m2": (False, ["challenger"]),
    }
    post(admin_api, "/admin/models/promote", {"version": "m2"}, 202)
    assert finished(admin_api, "promote")["answer"]["version"] == "m2"
    wait_until(lambda: admin_api.get("/models")["serving"] == "m2")
    post(admin_api, "/admin/models/rollback", status=202)
    assert finished(admin_api, "promote")["answer"]["version"] == "m1"
    wait_until(lambda: admin_api.get("/models")["serving"] == "m1")
    post(admin_api, "/admin/models/promote", {"version": "m9"}, 202)
    job = finished(admin_api, "promote")
    assert job["state"] == "failed"
    assert "no model 'm9'" in job["error"]


def test_a_training_tells_its_progress_and_why_it_failed(admin_api: Running) -> None:
    post(admin_api, "/admin/models/train", status=202)
    wait_until(lambda: (console(admin_api)["training"] or {}).get("state") == "training")
    job = finished(admin_api, "train", 180)  # there is no Parquet log
    assert job["state"] == "failed"
    assert "no Parquet log" in job["error"]
    training = console(admin_api)["training"]
    assert training["state"] == "stopped"
    assert "no Parquet log" in training["last"]


def test_the_shoppers_go_home_with_the_api(breakable: Settings, stream: MiniStream) -> None:
    with Running(breakable, breakable.serving.port) as api:
        api.ready()
        shop.publish_items(breakable, shop.wide_catalogue())
        wait_until(lambda: len(api.service.catalogue) == len(shop.wide_catalogue()))
        post(api, "/admin/simulator", {"shoppers": 2})
        child = api.service.console.simulator._child
        assert child is not None
        assert child.running
    assert not child.running

"""The admin panels in a real browser, with an API and a console that require keys."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from playwright.sync_api import Locator, Page, expect

from afterclick.events import new_id
from afterclick.io.home import PartRecord, StackRecord
from afterclick.settings import (
    ApiKey,
    ConsoleSettings,
    KafkaSettings,
    RedisSettings,
    ServingSettings,
    Settings,
    UiSettings,
)
from infra.embedded.kafka import delete_topics, ensure_topics
from infra.embedded.process import Process
from infra.embedded.server import free_port
from serving.control.api_keys import new_key
from tests.infra.running_console import RunningConsole
from tests.serving import shop as wares
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running
from tests.ui.conftest import answers
from tests.ui.test_accessibility import violations
from tests.waiting import PATIENCE_S, REDIS_S, wait_until
from ui.pages.experiments_panel import figure

EVENTS = 30
# An `afterclick` command started by the console takes seconds to import, longer on a busy machine.
JOB_MS = 240_000


@dataclass(frozen=True)
class AdminStack:
    """A small stack with fault injection, and pages with an administrator's key."""

    url: str
    api: Running
    console: RunningConsole
    settings: Settings


@pytest.fixture(scope="module")
def admin_stack(
    broker: str, redis_url: str, jars: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AdminStack]:
    home = tmp_path_factory.mktemp("desk")
    settings, key = _settings(broker, redis_url, jars, home)
    ensure_topics(settings)
    with ExitStack() as exits:
        exits.enter_context(MiniStream(settings))
        api = exits.enter_context(Running(settings, settings.serving.port))
        api.http.headers["authorization"] = f"Bearer {key}"
        api.ready()
        wares.publish_items(settings, wares.wide_catalogue())
        wares.publish(settings, *wares.write(settings, "m1"))
        for n in range(EVENTS):
            api.feedback(f"user-{n % 5}", f"camera-{n}", event_id=new_id())
        console = exits.enter_context(RunningConsole(settings))
        console.http.headers["authorization"] = f"Bearer {key}"
        command: list[str | Path] = [Path(sys.executable).with_name("afterclick"), "ui"]
        pages = Process("ui", command, home / "ui.log", settings.environment())
        pages.start()
        exits.callback(pages.stop)
        url = f"http://127.0.0.1:{settings.ui.port}"
        pages.wait_ready(lambda: answers(f"{url}/health/live"), 240)
        yield AdminStack(url, api, console, settings)
    delete_topics(settings.kafka)


def _settings(broker: str, redis_url: str, jars: Path, home: Path) -> tuple[Settings, str]:
    """The settings and the administrator's key."""
    unique, port, console = uuid4().hex[:8], free_port(), free_port()
    key, digest = new_key()
    keys = {"administrator": ApiKey(sha256=digest, scopes=("admin",))}
    settings = Settings(
        home=home,
        jars=jars,
        kafka=KafkaSettings(bootstrap=broker, prefix=f"desk{unique}-", partitions=2),
        redis=RedisSettings(url=redis_url, prefix=f"desk{unique}:", timeout_s=REDIS_S),
        serving=ServingSettings(port=port, keys=keys),
        console=ConsoleSettings(port=console, fault_injection=True),
        ui=UiSettings(
            port=free_port(),
            api_url=f"http://127.0.0.1:{port}",
            console_url=f"http://127.0.0.1:{console}",
            api_key=key,
        ),
    )
    return settings, key


def open_live(page: Page, admin_stack: AdminStack) -> None:
    page.goto(f"{admin_stack.url}/live")
    expect(page.locator(".ac-connection")).to_have_text("live")


def panel(page: Page, name: str) -> Locator:
    return page.get_by_test_id(name)


def console(admin_stack: AdminStack) -> dict[str, Any]:
    return admin_stack.console.state()


def test_the_shop_works_with_an_api_key(page: Page, admin_stack: AdminStack) -> None:
    page.goto(f"{admin_stack.url}/?user=visitor-1")
    expect(page.locator(".ac-card").first).to_be_visible()
    expect(page.locator(".ac-connection")).to_have_text("live")
    item_id = page.locator(".ac-card").first.get_attribute("data-item")
    page.locator(f'[data-item="{item_id}"] [data-action="like"]').click()
    expect(page.locator(f'[data-item="{item_id}"]')).to_have_count(0)
    page.get_by_test_id("api").click()
    snippets = page.locator("dialog[open] pre")
    expect(snippets.first).to_contain_text("$AFTERCLICK_UI__API_KEY")
    key = admin_stack.settings.ui.api_key
    assert key is not None
    assert key not in page.content()


def test_the_comparison_ranks_by_one_model_and_shows_a_fallback(
    page: Page, admin_stack: AdminStack
) -> None:
    page.goto(f"{admin_stack.url}/compare?user=user-1")
    column = page.locator('[data-policy="als"]')
    expect(column.locator("li")).to_have_count(10)
    expect(column.locator(".ac-fallback")).to_have_count(0)
    ids = column.locator("li a").evaluate_all(
        "links => links.map(link => new URL(link.href).searchParams.get('id'))"
    )
    assert ids == [
        item["item_id"] for item in admin_stack.api.list_for("user-1", policy="als")["items"]
    ]
    assert all(item.startswith("camera-") for item in ids)
    expect(page.locator('[data-policy="two_tower"] .ac-fallback')).to_contain_text("Instead: ")


def test_the_item_page_has_similar_items_by_users_and_by_content(
    page: Page, admin_stack: AdminStack
) -> None:
    page.goto(f"{admin_stack.url}/item?id=camera-2&user=user-1")
    for kind in ("bought", "content"):
        expected = admin_stack.api.get("/similar-items", item_id="camera-2", n=6, by=kind)["items"]
        cards = page.locator(f'[data-similar="{kind}"] .ac-card')
        expect(cards).to_have_count(len(expected))
        ids = cards.evaluate_all("cards => cards.map(card => card.dataset.item)")
        assert ids == [item["item_id"] for item in expected]
    cards.first.get_by_role("button", name="Like").click()
    expect(page.locator('[data-similar="content"] [role=status]')).to_contain_text("in the log at")


def test_a_personal_list_shows_its_confidence(page: Page, admin_stack: AdminStack) -> None:
    page.goto(f"{admin_stack.url}/?user=user-2")
    words = page.locator(".ac-confidence")
    expect(words.first).to_contain_text("% sure")
    shares = [int(text.split("%")[0]) for text in words.all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 50
    page.locator('[data-action="why"]').first.click()
    expect(page.get_by_test_id("receipt-confidence")).to_contain_text(f"{shares[0]}% sure")
    expect(page.get_by_test_id("attributions").locator("li").first).to_contain_text(
        re.compile(r"\d\.\d+ liked The")
    )


def test_the_replay_can_be_paused_resumed_and_change_its_pace(
    page: Page, admin_stack: AdminStack
) -> None:
    rows = "".join(f"u{n % 9},cable-{n % 7},{1_400_000_000 + 3600 * n}\n" for n in range(3000))
    file = admin_stack.settings.home / "replayed.csv"
    file.write_text(f"user_id,item_id,timestamp\n{rows}")
    open_live(page, admin_stack)
    replay = panel(page, "replay")
    expect(replay).to_contain_text("No replay has run")
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "infra",
        "ingest",
        "replay",
        file,
        "--rate",
        "20",
        "--json",
    ]
    env = {**os.environ, **admin_stack.settings.environment()}
    running = subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        expect(replay).to_have_attribute("data-state", "running", timeout=JOB_MS)
        expect(replay.locator("time")).to_have_text(re.compile(r"2014-05-\d\d"))
        page.get_by_test_id("replay-toggle").click()
        expect(replay).to_have_attribute("data-state", "paused")
        expect(page.get_by_test_id("replay-toggle")).to_have_text("Resume")
        page.get_by_test_id("replay-pace").select_option(label="1 day per second")
        expect(replay).to_contain_text("1d/s")
        page.get_by_test_id("replay-toggle").click()
        expect(replay).to_have_attribute("data-state", "running")
        page.get_by_test_id("replay-pace").select_option(label="as fast as possible")
        expect(replay).to_have_attribute("data-state", "ended", timeout=JOB_MS)
        expect(replay).to_contain_text("3,000 of 3,000")
        assert running.wait(PATIENCE_S) == 0
    finally:
        running.kill()
        running.wait()


def test_the_simulation_can_be_started_changed_and_stopped(
    page: Page, admin_stack: AdminStack
) -> None:
    open_live(page, admin_stack)
    simulator = panel(page, "simulator")
    page.get_by_test_id("simulator-shoppers").fill("6")
    page.get_by_test_id("simulator-start").click()
    expect(simulator).to_have_attribute("data-state", "running")
    expect(page.get_by_test_id("simulator-figures")).to_contain_text("recommended", timeout=JOB_MS)
    page.get_by_test_id("simulator-hot").fill("camera-2")
    page.get_by_test_id("simulator-drift").fill("0.5")
    page.get_by_test_id("simulator-change").click()
    expect(simulator).to_contain_text("trending: camera-2")
    assert console(admin_stack)["simulator"]["plan"] == {
        "shoppers": 6,
        "pause_s": 1.0,
        "drift": 0.5,
        "hot": ["camera-2"],
    }
    page.get_by_test_id("simulator-stop").click()
    expect(simulator).to_have_attribute("data-state", "stopped")
    assert console(admin_stack)["simulator"]["running"] is False


@pytest.mark.long
def test_models_are_compared_promoted_and_rolled_back(page: Page, admin_stack: AdminStack) -> None:
    _register(admin_stack.settings)
    open_live(page, admin_stack)
    models = panel(page, "models")
    page.get_by_test_id("list-models").click()
    expect(models.locator('[data-model="m1"]')).to_contain_text("champion", timeout=JOB_MS)
    expect(models.locator('[data-model="m2"]')).to_contain_text("challenger")
    expect(page.get_by_test_id("decisions")).to_contain_text("worse than the champion")
    models.locator('[data-promote="m2"]').click()
    expect(models.locator('[data-model="m2"]')).to_contain_text("champion", timeout=JOB_MS)
    expect(models.locator('[data-model="m1"]')).to_contain_text("previous", timeout=JOB_MS)
    wait_until(lambda: admin_stack.api.get("/models")["serving"] == "m2")
    page.get_by_test_id("rollback").click()
    expect(models.locator('[data-model="m1"]')).to_contain_text("champion", timeout=JOB_MS)
    wait_until(lambda: admin_stack.api.get("/models")["serving"] == "m1")


@pytest.mark.parametrize(
    ("component", "event", "named"),
    [
        ('[data-testid="models"]', "act", {"what": "../../keys"}),
        ('[data-testid="fault-injection"]', "fault", {"fault": "../reconcile"}),
    ],
)
def test_the_browser_names_no_other_route_of_the_console(
    page: Page, admin_stack: AdminStack, component: str, event: str, named: dict[str, str]
) -> None:
    page.goto(f"{admin_stack.url}/live")
    element = page.locator(component)
    expect(element).to_be_visible()
    send = "(root, [event, named]) => getElement(Number(root.id.slice(1))).$emit(event, named)"
    element.evaluate(send, [event, named])
    notice = page.get_by_test_id("admin-notice")
    expect(notice).to_have_text("This action is unknown: reload the page")


def test_experiments_show_their_arms_with_intervals_and_the_sample_ratio(
    page: Page, admin_stack: AdminStack
) -> None:
    arms = [
        {"name": "old", "policy": "popular"},
        {"name": "new", "policy": "als", "diversity": 0.2},
    ]
    decided_by = {"metric": "clicks_per_user", "plan": {"users": 1000}}
    for draft in (
        {"name": "factors", "arms": arms, "note": "is ALS alone enough?"},
        {"name": "later", "arms": [{"name": "a"}, {"name": "b"}], "traffic": 0.25},
    ):
        created = admin_stack.api.http.post("/experiments", json={**draft, **decided_by})
        assert created.status_code == 201
    for n in range(24):
        answer = admin_stack.api.list_for(f"tried-{n}", n=5)
        assert answer["experiment"]["name"] == "factors"
        if n % 3 == 0:
            item, impression = answer["items"][0]["item_id"], answer["impression_id"]
            admin_stack.api.feedback(f"tried-{n}", item, "click", impression_id=impression)
    open_live(page, admin_stack)
    expect(page.locator("[data-experiment]")).to_have_count(2)
    shown = page.locator('[data-experiment="factors"]')
    expect(shown).to_have_attribute("data-state", "running")
    expect(shown).to_contain_text("is ALS alone enough?")
    new = shown.locator('[data-arm="new"]')
    expect(new).to_contain_text("als diversity=0.2")

    def counted() -> dict[str, dict[str, Any]] | None:
        rows = {row["name"]: row for row in admin_stack.api.get("/experiments/factors")["arms"]}
        lists, clicks = (sum(row[name] for row in rows.values()) for name in ("lists", "clicks"))
        return rows if (lists, clicks) == (24, 8) else None

    rows = wait_until(counted)
    for name, row in rows.items():
        arm = shown.locator(f'[data-arm="{name}"]')
        expect(arm.locator('[data-figure="lists"]')).to_have_text(str(row["lists"]))
        expect(arm.locator('[data-figure="mean"]')).to_have_text(
            figure(row["clicks_per_user"], percent=False)
        )
    expect(shown.locator('[data-figure="plan"]')).to_contain_text("of 1,000 users")
    expect(shown.locator('[data-figure="ratio"]')).to_contain_text("Users are split as planned")
    expect(page.locator('[data-experiment="later"]')).to_contain_text("No users yet")
    assert violations(page) == []
    assert admin_stack.api.http.post("/experiments/factors/stop").status_code == 200
    expect(shown).to_have_attribute("data-state", "stopped")
    expect(page.locator("[data-experiment]").first).to_have_attribute("data-experiment", "later")
    assert admin_stack.api.http.post("/experiments/later/stop").status_code == 200


@pytest.mark.long
def test_a_training_is_started_and_its_result_is_shown(page: Page, admin_stack: AdminStack) -> None:
    open_live(page, admin_stack)
    page.get_by_test_id("train").click()
    expect(page.get_by_test_id("training")).to_contain_text("Training", timeout=JOB_MS)
    expect(page.get_by_test_id("train")).to_be_disabled()
    expect(page.get_by_test_id("training")).to_contain_text("no event archive", timeout=JOB_MS)
    expect(page.get_by_test_id("train")).to_be_enabled()


def test_injected_faults_leave_no_difference_in_the_recount(
    page: Page, admin_stack: AdminStack
) -> None:
    open_live(page, admin_stack)
    faults = page.get_by_test_id("faults")
    page.locator('[data-fault="duplicates"]').click()
    expect(faults).to_contain_text("a second time", timeout=JOB_MS)
    page.locator('[data-fault="redis"]').click()
    expect(faults).to_contain_text("Redis paused", timeout=JOB_MS)
    page.get_by_test_id("reconcile").click()
    expect(page.get_by_test_id("proof")).to_contain_text("Recounting")
    expect(page.get_by_test_id("proof")).to_contain_text("0 differences", timeout=JOB_MS)
    assert console(admin_stack)["jobs"]["reconcile"]["answer"]["duplicates"] >= EVENTS


def test_the_stream_job_is_killed_and_a_refusal_is_shown(
    page: Page, admin_stack: AdminStack
) -> None:
    open_live(page, admin_stack)
    page.locator('[data-fault="stream"]').click()
    expect(page.get_by_test_id("admin-notice")).to_contain_text("no stack runs from")
    victim = subprocess.Popen(["sleep", "600"])
    try:
        part = PartRecord(name="stream", state="ready", pid=victim.pid, restarts=3)
        StackRecord(running=True, pid=1, parts=(part,)).write(admin_stack.settings.home)
        page.locator('[data-fault="stream"]').click()
        expect(page.get_by_test_id("faults")).to_contain_text(f"process {victim.pid}")
        assert victim.wait(PATIENCE_S) == -9
        expect(page.get_by_test_id("admin-notice")).to_have_text("")
    finally:
        victim.kill()
        victim.wait()


def _register(settings: Settings) -> None:
    """Register two models, m1 served, and a challenger that the gate refused."""
    from training.challenger import Evaluation
    from training.mlflow_registry import MlflowRegistry

    registry = MlflowRegistry(settings)
    registry.experiment()
    wares.write(settings, "m2")
    for version in ("m1", "m2"):
        run_id = registry.start(version, {}, {"version": version})
        registry.register(settings.artifacts / version, run_id, {"rows": "60"})
    registry.sync_aliases("m1")
    refused = Evaluation(
        questions=100,
        metrics={"live.ndcg@10": 0.01},
        against={"champion": {"live.ndcg@10": 0.05}},
        champion="m1",
        passed=False,
        verdict="refused",
        reason="worse than the champion: ndcg@10 0.0100, champion 0.0500",
    )
    folder = settings.home / "challengers" / "20260101-000000"
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(refused.model_dump_json())

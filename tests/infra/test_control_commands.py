"""`afterclick rules`, `experiments`, `api-key` against a running API, and `db`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from afterclick.errors import AfterclickError, BadInput
from afterclick.settings import ServingSettings, Settings
from infra.cli import app
from tests.serving.running import Running

Command = Callable[..., str]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An API that needs neither Kafka nor Redis: its control plane is SQL."""
    home = tmp_path_factory.mktemp("control")
    nowhere = {"bootstrap": "127.0.0.1:9"}
    settings = Settings(home=home, kafka=nowhere, redis={"url": "redis://127.0.0.1:9/0"})
    with Running(settings) as running:
        yield running


def command_of(url: str, key: str | None = None) -> Command:
    """Runs a command that talks to the API at `url`: its output. Raises the command's error."""
    env = {"AFTERCLICK_UI__API_URL": url, "AFTERCLICK_UI__API_KEY": key}

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, words, env=env)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


@pytest.fixture
def command(api: Running) -> Command:
    return command_of(api.url)


def json_of(output: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer


def test_the_tokens_of_a_user_are_revoked(command: Command, api: Running) -> None:
    for user_id in ("ann", "shop/ann"):
        assert f"tokens of {user_id}" in command("api-token", user_id, "--revoke")
    assert len(api.service.control.tokens) == 2


def test_rules_are_added_listed_and_removed(command: Command) -> None:
    words = ("boost", "brand:Sony", "price:..50", "--amount", "2", "--ends", "2031-01-01")
    rule = json_of(command("rules", "add", *words, "--note", "summer", "--json"))
    assert (rule["query"], rule["amount"], rule["ends"]) == (
        ["brand:Sony", "price:..50"],
        2.0,
        "2031-01-01T00:00:00+00:00",
    )
    listed = json_of(command("rules", "ls", "--json"))["rules"]
    assert [(r["rule_id"], r["in_force"], r["note"]) for r in listed] == [
        (rule["rule_id"], True, "summer")
    ]
    assert rule["rule_id"] in command("rules", "ls")
    command("rules", "rm", rule["rule_id"])
    with pytest.raises(BadInput, match="rule"):
        command("rules", "rm", rule["rule_id"])


def test_an_invalid_rule_is_rejected_with_its_reason(command: Command) -> None:
    with pytest.raises(BadInput, match="FIELD:VALUE"):
        command("rules", "add", "boost", "colour:red")


def test_an_experiment_is_created_listed_shown_and_stopped(command: Command) -> None:
    arms = ("--arm", "old:policy=popular,share=3", "--arm", "new:explore=0.1,weights.trend=2")
    plan = ("--metric", "conversion", "--baseline", "0.05", "--effect", "0.1", "--days", "3")
    options = ("--traffic", "0.5", "--json", *plan)
    created = command("experiments", "create", "first", *options, *arms)
    first, second = json_of(created)["arms"]
    assert (first["policy"], first["share"]) == ("popular", 3.0)
    assert (second["explore"], second["weights"]) == (0.1, {"trend": 2.0})
    with pytest.raises(BadInput, match="already"):
        command("experiments", "create", "first", "--arm", "a", "--arm", "b", *plan)
    shown = json_of(command("experiments", "show", "first", "--json"))
    assert [arm["users"] for arm in shown["arms"]] == [0, 0]
    assert [arm["decision"] for arm in shown["arms"]] == [None, "open"]
    assert (shown["metric"], shown["days"]) == ("conversion", 3)
    assert shown["planned_users"] == json_of(created)["plan"]["users"] > 50_000
    assert f"{shown['planned_users']:,} users per arm" in command("experiments", "show", "first")
    assert shown["sample_ratio"]["broken"] is False
    listed = command("experiments", "ls")
    assert "first" in listed
    assert "explore=0.1" in listed
    command("experiments", "stop", "first")
    command("experiments", "stop", "first")  # again: nothing changes
    with pytest.raises(BadInput, match="unknown"):
        command("experiments", "stop", "unknown")
    assert json_of(command("experiments", "ls", "--json"))["experiments"][0]["stopped"]


@pytest.mark.parametrize(
    "arms",
    [
        ("--arm", "one"),
        ("--arm", "a:policy=best", "--arm", "b"),
        ("--arm", "a:policy", "--arm", "b"),
    ],
)
def test_an_invalid_experiment_is_rejected(command: Command, arms: tuple[str, ...]) -> None:
    with pytest.raises(BadInput):
        command("experiments", "create", "x", "--metric", "conversion", "--users", "99", *arms)


def test_the_first_key_needs_the_scope_admin_and_manages_the_others(tmp_path: Path) -> None:
    nowhere = {"bootstrap": "127.0.0.1:9"}
    settings = Settings(home=tmp_path, kafka=nowhere, redis={"url": "redis://127.0.0.1:9/0"})
    with Running(settings) as api:
        unkeyed = command_of(api.url)
        with pytest.raises(BadInput, match="--scope admin"):
            unkeyed("api-key", "add", "shop")
        admin = json_of(unkeyed("api-key", "add", "me", "--scope", "admin", "--json"))["key"]
        with pytest.raises(BadInput):
            unkeyed("api-key", "ls")
        keyed = command_of(api.url, admin)
        shop = json_of(keyed("api-key", "add", "shop", "--json"))
        assert shop["scopes"] == ["recommend", "feedback"]
        assert admin not in keyed("api-key", "ls")
        with pytest.raises(AfterclickError, match="scope"):
            command_of(api.url, shop["key"])("rules", "ls")
        keyed("api-key", "revoke", "shop")
        rows = json_of(keyed("api-key", "ls", "--json"))["keys"]
        assert {row["name"]: bool(row["revoked"]) for row in rows} == {"me": False, "shop": True}


def test_a_key_as_a_setting_needs_no_running_api(tmp_path: Path) -> None:
    offline = command_of("http://127.0.0.1:9")
    output = offline("api-key", "add", "me", "--scope", "admin", "--setting")
    lines = dict(line.split(maxsplit=1) for line in output.splitlines())
    variable, value = lines["setting"].split("=", 1)
    assert variable == "AFTERCLICK_SERVING__KEYS"
    keys = ServingSettings(keys=json.loads(value.strip("'")))
    nowhere = {"bootstrap": "127.0.0.1:9"}
    settings = Settings(home=tmp_path, kafka=nowhere, redis={"url": "redis://127.0.0.1:9/0"})
    with Running(settings.model_copy(update={"serving": keys})) as api:
        assert json_of(command_of(api.url, lines["key"])("rules", "ls", "--json")) == {"rules": []}


def test_the_tables_are_upgraded(tmp_path: Path) -> None:
    env = {"AFTERCLICK_HOME": str(tmp_path)}
    assert "is at base" in CliRunner().invoke(app, ["db", "status"], env=env).stdout
    assert CliRunner().invoke(app, ["db", "upgrade"], env=env).exit_code == 0
    newest = CliRunner().invoke(app, ["db", "status"], env=env).stdout.split()
    assert "base" not in newest

"""A training killed while it publishes: the champion stays and no partial model appears."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import orjson
import pytest

from afterclick.settings import Settings
from tests.training.challengers import add_challenger, add_champion, an_artifact
from training import publish
from training.mlflow_registry import MlflowRegistry


def tries(module: str, settings: Settings) -> list[dict[str, Any]]:
    """The JSON lines of a process that is killed repeatedly."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.training.{module}"],
        env={**os.environ, **settings.environment()},
        stdout=subprocess.PIPE,
        check=True,
        timeout=570,
    )
    return [orjson.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]


def test_killed_at_any_file_operation_the_champion_is_a_valid_model(settings: Settings) -> None:
    publish.announce(settings.kafka, an_artifact(settings.artifacts, "old"))
    an_artifact(settings.home / "new", "model")
    states = tries("killed_publish", settings)
    # the control: without staging and rename a partial model appears
    control = [state for state in states if state["action"] == "copy_in_place"]
    assert any(state["damaged"] == ["new"] for state in control)
    *killed, last = (state for state in states if state["action"] == "deploy")
    assert len(killed) > 8
    assert {state["exit_code"] for state in killed} == {-signal.SIGKILL}
    assert {state["champion"] for state in killed} == {"old"}
    assert not any(state["damaged"] for state in [*killed, last])
    assert any("new" in state["valid"] for state in killed)  # complete, not yet published
    assert (last["exit_code"], last["champion"], last["valid"]) == (0, "new", ["new", "old"])


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_at_any_write_to_mlflow_the_alias_previous_is_the_model_served_before(
    settings: Settings,
) -> None:
    add_champion(settings, "oldest")
    add_champion(settings, "old")
    add_challenger(settings, "new")
    run_id = MlflowRegistry(settings).start("new", {}, {})
    (settings.home / "challengers" / "new" / "mlflow_run").write_text(run_id)
    *killed, last = tries("killed_record", settings)
    before = {"old": "oldest", "new": "old"}
    for state in [*killed, last]:
        champion = state["champion"]
        assert state["repaired"] == {"champion": champion, "previous": before[champion]}
    assert {state["exit_code"] for state in killed} == {-signal.SIGKILL}
    assert {state["champion"] for state in killed} == {"old", "new"}
    # the control: the aliases are wrong before the repair
    assert any(state["after_kill"]["previous"] != before[state["champion"]] for state in killed)
    assert last["after_kill"] == {"champion": "new", "previous": "old"}

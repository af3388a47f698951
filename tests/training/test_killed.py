"""A training that is killed while it publishes: the champion stays, and nothing is published by half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import orjson
import pytest

from afterclick.settings import Settings
from tests.training.candidates import an_artifact, candidate, champion
from training import publish
from training.mlflow_registry import MlflowRegistry


@pytest.fixture
def old_and_new(settings: Settings) -> Settings:
    """`old` is the champion, and there is a candidate `new`."""
    publish.announce(settings.kafka, an_artifact(settings.artifacts, "old"))
    an_artifact(settings.home / "new", "model")
    return settings


def tries(module: str, settings: Settings) -> list[dict[str, Any]]:
    """What a process that is killed again and again told."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.training.{module}"],
        env={**os.environ, **settings.environment()},
        stdout=subprocess.PIPE,
        check=True,
        timeout=570,
    )
    return [orjson.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]


def test_killed_at_any_write_the_champion_is_one_that_can_be_loaded(old_and_new: Settings) -> None:
    found = tries("killed_deploy", old_and_new)
    # the control: without staging and rename half a model would be there
    assert any(one["broken"] == ["new"] for one in found if one["what"] == "copy_in_place")
    *killed, last = (one for one in found if one["what"] == "deploy")
    assert len(killed) > 8
    assert {one["ended"] for one in killed} == {-signal.SIGKILL}
    assert {one["champion"] for one in killed} == {"old"}
    assert not any(one["broken"] for one in [*killed, last])
    assert any("new" in one["whole"] for one in killed)  # whole, and not yet announced
    assert (last["ended"], last["champion"], last["whole"]) == (0, "new", ["new", "old"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_write_to_mlflow_the_way_back_leads_to_what_was_served_before(
    settings: Settings,
) -> None:
    champion(settings, "oldest")
    champion(settings, "old")
    candidate(settings, "new")
    run_id = MlflowRegistry(settings).start("new", {}, {})
    (settings.home / "candidates" / "new" / "run").write_text(run_id)
    *killed, last = tries("killed_record", settings)
    before = {"old": "oldest", "new": "old"}
    for one in [*killed, last]:
        assert one["found"] == {"champion": one["champion"], "previous": before[one["champion"]]}
    assert {one["ended"] for one in killed} == {-signal.SIGKILL}
    assert {one["champion"] for one in killed} == {"old", "new"}
    # the control: the aliases as they were left lead elsewhere
    assert any(one["left"]["previous"] != before[one["champion"]] for one in killed)
    assert last["left"] == {"champion": "new", "previous": "old"}

"""A training that is killed while it publishes: the champion stays, and nothing is published by half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from afterclick import artifact
from afterclick.settings import Settings
from tests.scoring.worlds import a_model
from training import publish


@pytest.fixture
def candidate(settings: Settings) -> Settings:
    """`old` is the champion, and there is a candidate `new`."""
    publish.announce(settings.kafka, _artifact(settings.artifacts, "old"))
    _artifact(settings.home / "new", "model")
    return settings


def _artifact(root: Path, version: str) -> Path:
    model = replace(a_model(), version=version)
    return artifact.write(root, version, model.save, created="now", items=len(model))[0]


def test_killed_at_any_write_the_champion_is_one_that_can_be_loaded(candidate: Settings) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.killed_deploy"],
        env={**os.environ, **candidate.environment()},
        stdout=subprocess.PIPE,
        check=True,
        timeout=240,
    )
    found = [orjson.loads(line) for line in done.stdout.splitlines()]
    # the control: without staging and rename half a model would be there
    assert any(one["broken"] == ["new"] for one in found if one["what"] == "copy_in_place")
    *killed, last = (one for one in found if one["what"] == "deploy")
    assert len(killed) > 8
    assert {one["ended"] for one in killed} == {-signal.SIGKILL}
    assert {one["champion"] for one in killed} == {"old"}
    assert not any(one["broken"] for one in [*killed, last])
    assert any("new" in one["whole"] for one in killed)  # whole, and not yet announced
    assert (last["ended"], last["champion"], last["whole"]) == (0, "new", ["new", "old"])

"""A model that is loaded while another one serves leaves most of the processor to the requests."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from afterclick import artifact
from serving.state import loaded_models as model_feed
from serving.state.loaded_models import ModelFeed, ModelStore, Pace
from tests.scoring.examples import a_model


def compute(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        np.arange(1000).sum()


def test_a_quarter_of_the_time_at_most() -> None:
    pace, began, spent = Pace(0.25), time.monotonic(), time.thread_time()
    for _ in range(10):
        compute(0.005)
        pace.rest()
    assert time.monotonic() - began >= 4 * (time.thread_time() - spent) * 0.95


def test_only_what_is_loaded_beside_a_serving_model_is_loaded_gently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = a_model()
    facts = {"created": "now", "items": len(model), "parameters": model.parameters()}
    folder, sha256 = artifact.write(tmp_path, model.version, model.save, **facts)
    rested: list[float] = []
    monkeypatch.setattr(Pace, "rest", lambda self: rested.append(self._pause))
    feed = ModelFeed(print, print, ModelStore(str(tmp_path), tmp_path))
    assert feed._load("m1", folder.as_uri(), sha256)
    assert rested == [], "people wait for the first model"
    feed.version = "m1"
    assert feed._load("m1", folder.as_uri(), sha256)
    assert len(rested) > len(list(folder.glob("*.npy")))
    assert set(rested) == {(1 - model_feed.SHARE) / model_feed.SHARE}

"""Old models are deleted after a publication; what is served, compared with or used stays."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import redis

from afterclick.settings import RedisSettings, Settings
from tests.serving.running import Running
from tests.training.challengers import add_challenger, add_champion, an_artifact
from tests.waiting import wait_until
from training import publish
from training.challenger import HOLDOUT_MODELS
from training.mlflow_registry import EXPERIMENT, MlflowRegistry, now_ms
from training.pipeline import Pipeline
from training.pruning import prune
from training.workspace import Anchor, models_in_use

DAY_MS = 86_400_000


@pytest.fixture
def shop(settings: Settings) -> Settings:
    """Six published versions; the first is the anchor, an API uses the second."""
    training = settings.training.model_copy(update={"keep_models": 1})
    settings = settings.model_copy(update={"training": training})
    for n in range(1, 7):
        add_champion(settings, f"v{n}")
        an_artifact(settings.home / HOLDOUT_MODELS, f"v{n}")
        run = next(MlflowRegistry(settings).runs(EXPERIMENT))
        MlflowRegistry(settings).client.set_tag(run.info.run_id, "version", f"v{n}")
        MlflowRegistry(settings).files(run.info.run_id, model_files(settings))
    Anchor(version="v1").write(settings.home)
    use(settings, "v2")
    return settings


def model_files(settings: Settings) -> Path:
    """A folder `model` with a file."""
    folder = settings.home / "model"
    folder.mkdir(exist_ok=True)
    (folder / "factors.npy").write_bytes(b"x")
    return folder


def use(settings: Settings, version: str, age_s: float = 0.0) -> None:
    with redis.Redis.from_url(settings.redis.url) as client:
        client.zadd(settings.redis.keys.models_in_use, {version: time.time() - age_s})


def kept(settings: Settings) -> list[set[str]]:
    """Versions with an artifact, a holdout model, a registered model, model files of their run."""
    registry = MlflowRegistry(settings)
    return [
        {path.name for path in settings.artifacts.iterdir()},
        {path.name for path in (settings.home / HOLDOUT_MODELS).iterdir()},
        {model.version for model in registry.models()},
        {
            run.data.tags["version"]
            for run in registry.runs(EXPERIMENT)
            if registry.client.list_artifacts(run.info.run_id, "model")
        },
    ]


def test_a_publication_keeps_what_is_needed(shop: Settings) -> None:
    add_challenger(shop, "v7")
    Pipeline(shop).deploy()
    needed = {"v1", "v2", "v5", "v6", "v7"}  # anchor, used, newest other, previous, champion
    assert kept(shop) == [needed] * 4
    assert len(list(MlflowRegistry(shop).runs(EXPERIMENT))) == 7  # their metrics stay
    use(shop, "v2", age_s=8 * 86_400)  # the control: no API uses it any more
    assert prune(shop) == ["v2"]
    assert kept(shop)[0] == needed - {"v2"}


def test_old_runs_are_deleted(shop: Settings) -> None:
    registry = MlflowRegistry(shop)
    began_ms = now_ms() - 400 * DAY_MS
    registry.start("failed train", {}, {"kind": "failed"}, began_ms)
    registry.start("v1", {}, {"version": "v1"}, began_ms)
    prune(shop)
    names = [run.info.run_name for run in registry.runs(EXPERIMENT)]
    assert "failed train" not in names
    assert "v1" in names


def test_uploads_are_deleted(settings: Settings, s3: Any) -> None:
    training = settings.training.model_copy(update={"keep_models": 0, "store": "s3://shop/models"})
    settings = settings.model_copy(update={"training": training})
    for n in range(1, 4):
        add_champion(settings, f"v{n}")
        publish.upload(settings.artifacts / f"v{n}", "s3://shop/models")
    publish.upload(an_artifact(settings.home, "v10"), "s3://shop/models")  # of another installation
    assert prune(settings) == ["v1"]
    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket="shop")["Contents"]]
    assert {key.split("/")[1] for key in keys} == {"v2", "v3", "v10"}


def test_without_redis_nothing_is_deleted(shop: Settings) -> None:
    nowhere = shop.model_copy(update={"redis": RedisSettings(url="redis://127.0.0.1:1/0")})
    before = kept(shop)
    assert prune(nowhere) == []
    assert kept(shop) == before


def test_an_api_says_which_models_it_uses(settings: Settings) -> None:
    publish.announce(settings.kafka, an_artifact(settings.artifacts, "v1"))
    with Running(settings):
        wait_until(lambda: models_in_use(settings) == {"v1"})

"""Loading models: from S3 (moto's server), verified, with bounded CPU and retries."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from afterclick import artifact
from afterclick.errors import BadArtifact, BadInput, Unavailable
from afterclick.events import ModelEvent, ModelPublished, encode, new_id, now
from serving.state.loaded_models import (
    LOADING_CPU_SHARE,
    MAX_FETCHED,
    CpuThrottle,
    ModelFeed,
    ModelStore,
    folder_of,
)
from tests.scoring.examples import a_model
from tests.waiting import wait_until
from training.publish import upload

ROOT = "s3://shop/models"


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, str]:
    model = a_model()
    facts = {"created": "now", "items": len(model), "parameters": model.parameters()}
    return artifact.write(tmp_path / "artifacts", model.version, model.save, **facts)


def test_a_model_is_uploaded_to_s3_and_downloaded_unchanged(
    s3: Any, made: tuple[Path, str], tmp_path: Path
) -> None:
    folder, sha256 = made
    uri = upload(folder, ROOT)
    assert uri == "s3://shop/models/m1"
    fetched = folder_of(uri, tmp_path / "cache", sha256)
    assert sorted(p.name for p in fetched.iterdir()) == sorted(p.name for p in folder.iterdir())
    artifact.verify(fetched, artifact.read_manifest(fetched, sha256))
    s3.delete_object(Bucket="shop", Key="models/m1/manifest.json")
    assert folder_of(uri, tmp_path / "cache", sha256) == fetched  # it is in the cache


def test_a_model_on_s3_is_loaded(s3: Any, made: tuple[Path, str], tmp_path: Path) -> None:
    folder, sha256 = made
    feed = ModelFeed(print, print, ModelStore(ROOT, tmp_path / "cache"))
    loaded = feed.load("m1", upload(folder, ROOT), sha256)
    assert loaded
    assert loaded.version == "m1"
    assert not feed.rejected


class InterruptedClient:
    """An S3 client; before its first download another process fetches the same model."""

    def __init__(self, client: Any, fetch: Callable[[], Path]) -> None:
        self._client, self._fetch = client, fetch
        self.others: list[Path] = []

    def download_file(self, bucket: str, key: str, path: str) -> None:
        if not self.others:
            self.others.append(self._fetch())
        self._client.download_file(bucket, key, path)


def test_two_processes_may_fetch_the_same_model_at_the_same_time(
    s3: Any, made: tuple[Path, str], tmp_path: Path
) -> None:
    folder, sha256 = made
    uri, cache = upload(folder, ROOT), tmp_path / "cache"
    client = InterruptedClient(s3, lambda: folder_of(uri, cache, sha256))
    assert [folder_of(uri, cache, sha256, client)] == client.others
    assert [found.name for found in cache.iterdir()] == [client.others[0].name]


def test_old_models_and_unfinished_fetches_are_deleted(
    s3: Any, made: tuple[Path, str], tmp_path: Path
) -> None:
    folder, sha256 = made
    cache = tmp_path / "cache"
    for age in range(12):
        (cache / f"m{age}-old").mkdir(parents=True)
        os.utime(cache / f"m{age}-old", (1e9 - age, 1e9 - age))
    for name, when in ((".fetching-old", 1e9), (".fetching-now", time.time())):
        (cache / name).mkdir()
        os.utime(cache / name, (when, when))
    fetched = folder_of(upload(folder, ROOT), cache, sha256)
    kept = {f"m{age}-old" for age in range(MAX_FETCHED - 1)}
    assert {found.name for found in cache.iterdir()} == kept | {fetched.name, ".fetching-now"}


def test_an_object_damaged_on_s3_is_rejected(
    s3: Any, made: tuple[Path, str], tmp_path: Path
) -> None:
    folder, sha256 = made
    uri = upload(folder, ROOT)
    raw = bytearray((folder / "popularity.npy").read_bytes())
    raw[-1] ^= 1
    s3.put_object(Bucket="shop", Key="models/m1/popularity.npy", Body=bytes(raw))
    feed = ModelFeed(print, print, ModelStore(ROOT, tmp_path / "cache"))
    assert feed.load("m1", uri, sha256) is None
    assert "damaged" in feed.rejected["m1"]


def test_an_interrupted_upload_leaves_no_valid_model(
    s3: Any, made: tuple[Path, str], tmp_path: Path
) -> None:
    folder, sha256 = made
    with pytest.raises(Unavailable, match="the champion stays"):
        upload(folder, "s3://no-such-bucket/models")
    names = sorted(p.name for p in folder.iterdir())
    s3.upload_file(
        str(folder / names[0]), "shop", f"models/m1/{names[0]}"
    )  # the upload is interrupted here
    with pytest.raises(Unavailable, match="cannot be fetched"):
        folder_of("s3://shop/models/m1", tmp_path / "cache", sha256)
    assert not list((tmp_path / "cache").iterdir())


def test_a_manifest_that_differs_from_the_published_one_is_rejected(
    s3: Any, made: tuple[Path, str], tmp_path: Path
) -> None:
    uri = upload(made[0], ROOT)
    with pytest.raises(BadArtifact, match="differs from the published manifest"):
        folder_of(uri, tmp_path / "cache", "0" * 64)


def hostile_manifest(s3: Any, folder: Path, name: str) -> str:
    """Upload the artifact with one more file, `name`, of which the bucket holds the content."""
    upload(folder, ROOT)
    content = b"written by the bucket's owner"
    manifest = json.loads((folder / artifact.MANIFEST).read_bytes())
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifest["files"] = {name: entry, **manifest["files"]}
    raw = json.dumps(manifest).encode()
    s3.put_object(Bucket="shop", Key=f"models/m1/{name}", Body=content)
    s3.put_object(Bucket="shop", Key="models/m1/manifest.json", Body=raw)
    return hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize(
    ("name", "placed"),
    [
        ("notes.txt", True),  # the control: a plain name is fetched
        ("../../placed", False),
        ("sub/placed", False),
        (".placed", False),
        ("manifest.json", False),
    ],
)
def test_a_manifest_names_plain_files_only(
    s3: Any, made: tuple[Path, str], tmp_path: Path, name: str, placed: bool
) -> None:
    sha256 = hostile_manifest(s3, made[0], name)
    outside = set(tmp_path.iterdir())
    feed = ModelFeed(print, print, ModelStore(ROOT, tmp_path / "deep" / "cache"))
    loaded = feed.load("m1", f"{ROOT}/m1", sha256)
    assert (loaded is not None) is placed
    assert ("publish it again" in feed.rejected.get("m1", "")) is not placed
    assert set(tmp_path.iterdir()) == outside | {tmp_path / "deep"}
    assert len(list((tmp_path / "deep" / "cache").iterdir())) == placed


def test_a_model_on_s3_that_was_never_published_is_not_fetched(
    s3: Any, made: tuple[Path, str], tmp_path: Path
) -> None:
    folder, sha256 = made
    uri, cache = upload(folder, ROOT), tmp_path / "cache"
    used: list[str] = []
    feed = ModelFeed(print, lambda extra: used.extend(extra), ModelStore(ROOT, cache))
    feed.start()
    try:
        feed.request(["m1"])
        wait_until(lambda: "was never published" in feed.rejected.get("m1", ""))
        assert not cache.exists(), "no file is placed"
        feed.version = "m0"
        feed.read([published(folder, sha256, uri)])
        feed.request(["m1"])
        wait_until(lambda: feed.version == "m1" or used)
        assert not feed.rejected
    finally:
        feed.stop()


def test_only_s3_uris_are_stores(made: tuple[Path, str]) -> None:
    with pytest.raises(BadInput, match="s3://bucket/prefix"):
        upload(made[0], "ftp://shop/models")


def compute(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        np.arange(1000).sum()


def test_a_throttled_thread_uses_a_quarter_of_the_time() -> None:
    throttle, began, spent = CpuThrottle(0.25), time.monotonic(), time.thread_time()
    for _ in range(10):
        compute(0.005)
        throttle.yield_()
    assert time.monotonic() - began >= 4 * (time.thread_time() - spent) * 0.95
    assert LOADING_CPU_SHARE == 0.25


def test_loading_is_throttled_only_while_another_model_serves(
    made: tuple[Path, str], tmp_path: Path
) -> None:
    folder, sha256 = made
    yields: list[None] = []
    store = ModelStore(str(tmp_path), tmp_path, throttle=lambda: lambda: yields.append(None))
    feed = ModelFeed(print, print, store)
    assert feed.load("m1", folder.as_uri(), sha256)
    assert yields == [], "the first model is loaded at full speed"
    feed.version = "m1"
    assert feed.load("m1", folder.as_uri(), sha256)
    assert len(yields) > len(list(folder.glob("*.npy")))


def published(folder: Path, sha256: str, uri: str | None = None) -> Any:
    """A record of the models topic."""
    data = ModelPublished(version="m1", uri=uri or folder.as_uri(), manifest_sha256=sha256)
    raw = encode(ModelEvent(id=new_id(), source="test", time=now(), subject="m1", data=data))
    return SimpleNamespace(value=lambda: raw, offset=lambda: 0)


class FailingStore:
    """A store whose first two fetches of `m1` fail."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.fetched: list[str] = []

    def __call__(self, uri: str, cache: Path, manifest_sha256: str | None) -> Path:
        self.fetched.append(uri)
        if uri.endswith("other"):
            raise BadArtifact("no such model")
        if len(self.fetched) < 3:
            raise self._error
        return folder_of(uri, cache, manifest_sha256)


@pytest.mark.parametrize(
    ("error", "fetches"),
    [(Unavailable("S3 is unavailable"), 3), (BadArtifact("damaged"), 1)],
    ids=["unavailable", "damaged"],
)
def test_only_a_model_that_was_unavailable_is_fetched_again(
    made: tuple[Path, str], tmp_path: Path, error: Exception, fetches: int
) -> None:
    folder, sha256 = made
    fetch, used = FailingStore(error), []
    store = ModelStore(str(tmp_path), tmp_path / "cache", fetch, retry_s=0.01)
    feed = ModelFeed(lambda loaded: used.append(loaded.version), print, store)
    feed.start()
    try:
        feed.read([published(folder, sha256)])
        wait_until(lambda: used or ("m1" in feed.rejected and fetches == 1))
        feed.request(["other"])  # another round, which leaves no pending request
        wait_until(lambda: "other" in feed.rejected)
    finally:
        feed.stop()
    assert fetch.fetched.count(folder.as_uri()) == fetches
    assert used == (["m1"] if fetches == 3 else [])
    assert ("m1" in feed.rejected) is (fetches == 1)

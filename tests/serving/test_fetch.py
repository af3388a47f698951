"""Models on S3: copied whole, announced, fetched and checked. Against moto's server, a real S3 API."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from afterclick import artifact
from afterclick.errors import BadArtifact, BadInput, Unavailable
from serving.state import loaded_models as fetch
from serving.state.loaded_models import ModelFeed, ModelStore, folder_of
from tests.scoring.examples import a_model
from training.publish import upload

ROOT = "s3://shop/models"


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, str]:
    model = a_model()
    facts = {"created": "now", "items": len(model), "parameters": model.parameters()}
    return artifact.write(tmp_path / "artifacts", model.version, model.save, **facts)


def test_a_model_goes_to_s3_and_comes_back(s3: Any, made: tuple[Path, str], tmp_path: Path) -> None:
    folder, sha256 = made
    uri = upload(folder, ROOT)
    assert uri == "s3://shop/models/m1"
    fetched = folder_of(uri, tmp_path / "cache", sha256)
    assert sorted(p.name for p in fetched.iterdir()) == sorted(p.name for p in folder.iterdir())
    artifact.verify(fetched, artifact.read_manifest(fetched, sha256))
    s3.delete_object(Bucket="shop", Key="models/m1/manifest.json")
    assert folder_of(uri, tmp_path / "cache", sha256) == fetched  # it is here already


def test_the_api_serves_what_lies_on_s3(s3: Any, made: tuple[Path, str], tmp_path: Path) -> None:
    folder, sha256 = made
    feed = ModelFeed(print, print, ModelStore(ROOT, tmp_path / "cache"))
    loaded = feed._load("m1", upload(folder, ROOT), sha256)
    assert loaded
    assert loaded.version == "m1"
    assert not feed.refused


def test_two_processes_that_fetch_the_same_model_at_once_both_have_it(
    s3: Any, made: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sha256 = made
    uri, read = upload(folder, ROOT), fetch.read_manifest
    other: list[Path] = []

    def meanwhile(staging: Path, expected: str | None) -> Any:
        monkeypatch.setattr(fetch, "read_manifest", read)
        other.append(folder_of(uri, tmp_path / "cache", expected))
        return read(staging, expected)

    monkeypatch.setattr(fetch, "read_manifest", meanwhile)
    assert [folder_of(uri, tmp_path / "cache", sha256)] == other
    assert [found.name for found in (tmp_path / "cache").iterdir()] == [other[0].name]


def test_old_models_and_fetches_that_ended_early_make_room(
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
    kept = {f"m{age}-old" for age in range(fetch.KEEP - 1)}
    assert {found.name for found in cache.iterdir()} == kept | {fetched.name, ".fetching-now"}


def test_an_object_damaged_on_s3_is_refused(
    s3: Any, made: tuple[Path, str], tmp_path: Path
) -> None:
    folder, sha256 = made
    uri = upload(folder, ROOT)
    raw = bytearray((folder / "popularity.npy").read_bytes())
    raw[-1] ^= 1
    s3.put_object(Bucket="shop", Key="models/m1/popularity.npy", Body=bytes(raw))
    feed = ModelFeed(print, print, ModelStore(ROOT, tmp_path / "cache"))
    assert feed._load("m1", uri, sha256) is None
    assert "damaged" in feed.refused["m1"]


def test_an_upload_that_breaks_leaves_nothing_that_looks_whole(
    s3: Any, made: tuple[Path, str], tmp_path: Path
) -> None:
    folder, sha256 = made
    with pytest.raises(Unavailable, match="the old model stays"):
        upload(folder, "s3://no-such-bucket/models")
    names = sorted(p.name for p in folder.iterdir())
    s3.upload_file(
        str(folder / names[0]), "shop", f"models/m1/{names[0]}"
    )  # and then it was killed
    with pytest.raises(Unavailable, match="cannot be fetched"):
        folder_of("s3://shop/models/m1", tmp_path / "cache", sha256)
    assert not list((tmp_path / "cache").iterdir())


def test_another_manifest_than_the_announced_is_refused(
    s3: Any, made: tuple[Path, str], tmp_path: Path
) -> None:
    uri = upload(made[0], ROOT)
    with pytest.raises(BadArtifact, match="differs from the published manifest"):
        folder_of(uri, tmp_path / "cache", "0" * 64)


def test_only_s3_is_a_store(made: tuple[Path, str]) -> None:
    with pytest.raises(BadInput, match="s3://bucket/prefix"):
        upload(made[0], "ftp://shop/models")

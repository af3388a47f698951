"""A published artifact as a folder on this machine.

reads   s3      <bucket>/<prefix>/<version>/*
writes  folder  <cache>/<version>-<start of the manifest's hash>, whole or not at all
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from afterclick.artifact import MANIFEST, read_manifest
from afterclick.errors import Unavailable

KEEP = 8
"""Models that are kept here: the one that serves, those of arms, some to go back to."""
UNFINISHED_S = 86_400.0
_STAGING = ".fetching-"


def folder_of(uri: str, cache: Path, manifest_sha256: str | None = None) -> Path:
    """The folder of a published artifact: a path, a file:// URI, or what lies on S3, fetched once.

    What it holds is not checked here: the caller loads it against the manifest's hash. Raises Unavailable,
    BadArtifact.
    """
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        return _fetched(parts.netloc, parts.path.strip("/"), cache, manifest_sha256)
    return Path(unquote(parts.path)) if parts.scheme == "file" else Path(uri)


def _fetched(bucket: str, prefix: str, cache: Path, manifest_sha256: str | None) -> Path:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    target = cache / f"{prefix.rsplit('/', 1)[-1]}-{(manifest_sha256 or 'any')[:12]}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    _make_room(cache)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=cache))
    client: Any = boto3.client("s3")
    try:
        client.download_file(bucket, f"{prefix}/{MANIFEST}", str(staging / MANIFEST))
        for name in read_manifest(staging, manifest_sha256).files:
            client.download_file(bucket, f"{prefix}/{name}", str(staging / name))
        staging.rename(target)
    except (BotoCoreError, ClientError, OSError) as error:
        if target.is_dir():  # another process of this machine was faster
            return target
        raise Unavailable(f"s3://{bucket}/{prefix}: cannot be fetched: {error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _make_room(cache: Path) -> None:
    """Leave the models fetched last, and no fetch that ended early."""
    fetched: dict[Path, float] = {}
    for folder in cache.iterdir():
        with suppress(FileNotFoundError):  # another process has just finished with it
            fetched[folder] = folder.stat().st_mtime
    newest = sorted(fetched, key=lambda folder: -fetched[folder])
    whole = [folder for folder in newest if not folder.name.startswith(_STAGING)]
    old = [
        folder
        for folder in newest
        if folder not in whole and time.time() - fetched[folder] > UNFINISHED_S
    ]
    for folder in (*whole[KEEP - 1 :], *old):
        shutil.rmtree(folder, ignore_errors=True)

"""A model artifact: arrays, a FAISS file and a manifest with the SHA-256 of each. Never a pickle.

An artifact is a folder named by its version. `write` makes it whole or not at all; `read_manifest` and
`verify` refuse what is damaged *before* anything is loaded: many damaged FAISS files load without complaint.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from afterclick.errors import BadArtifact

FORMAT = 1
MANIFEST = "manifest.json"
CHUNK = 1 << 20
"""Bytes that are hashed or copied in one go."""
Throttle = Callable[[], object]
"""Called after each chunk: who shares the machine with something quicker lets it go first."""


def no_throttle() -> None:
    """Go on at once."""


class FileEntry(BaseModel):
    model_config = ConfigDict(frozen=True)

    sha256: str
    bytes: int


class Manifest(BaseModel):
    """What an artifact holds and where it came from."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    version: str
    created: str
    items: int
    files: dict[str, FileEntry]
    parameters: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    lineage: dict[str, Any] = {}


def write(root: Path, version: str, fill: Callable[[Path], None], **facts: Any) -> tuple[Path, str]:
    """Make the artifact `root/version` from the files that `fill(folder)` writes.

    `facts` are the manifest's items, created, parameters, metrics, lineage. The folder appears whole, by one
    rename. Returns it with the SHA-256 of its manifest. Raises FileExistsError if the version is there.
    """
    target = root / version
    if target.exists():
        raise FileExistsError(f"artifact {target} exists; versions are never written twice")
    root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=root))
    try:
        fill(staging)
        names = sorted(p.name for p in staging.iterdir())
        files = {
            n: FileEntry(sha256=sha256(staging / n), bytes=(staging / n).stat().st_size)
            for n in names
        }
        text = Manifest(version=version, files=files, **facts).model_dump_json(indent=1)
        (staging / MANIFEST).write_text(text)
        for path in staging.iterdir():
            _sync(path)
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _sync(root)
    return target, sha256(target / MANIFEST)


def read_manifest(folder: Path, expected_sha256: str | None = None) -> Manifest:
    """The manifest of an artifact. Raises BadArtifact if it is missing, damaged or of another format."""
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadArtifact(f"{path}: cannot be read ({error.strerror}); publish it again") from None
    if expected_sha256 and hashlib.sha256(raw).hexdigest() != expected_sha256:
        raise BadArtifact(f"{path}: is not the manifest that was published; publish it again")
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError:
        raise BadArtifact(f"{path}: is no manifest; publish the model again") from None
    if manifest.format != FORMAT:
        raise BadArtifact(f"{path}: format {manifest.format}, this program reads {FORMAT}")
    return manifest


def verify(folder: Path, manifest: Manifest, rest: Throttle = no_throttle) -> None:
    """Check size and SHA-256 of every file. Raises BadArtifact naming the first that differs."""
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry.bytes:
            raise BadArtifact(f"{path}: missing or of another size than its manifest says")
        if sha256(path, rest) != entry.sha256:
            raise BadArtifact(f"{path}: damaged, its SHA-256 is not the manifest's")


def load_array(folder: Path, name: str, rest: Throttle = no_throttle) -> NDArray[Any]:
    """The array in `<name>.npy`, in memory. Pickled arrays are refused."""
    path = folder / f"{name}.npy"
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        array: NDArray[Any] = np.empty_like(mapped, subok=False)
        raw = array.reshape(-1, order="A").view(np.uint8).data
        with path.open(
            "rb"
        ) as file:  # not from the map: a file cut meanwhile would end the process
            file.seek(mapped.offset)
            for start in range(0, len(raw), CHUNK):
                part = raw[start : start + CHUNK]
                if file.readinto(part) != len(part):
                    raise ValueError("it ends early")
                rest()
    except (OSError, ValueError) as error:
        raise BadArtifact(f"{path}: cannot be read: {error}") from None
    return array


def sha256(path: Path, rest: Throttle = no_throttle) -> str:
    """The SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            rest()
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""A model artifact: arrays, a FAISS file and a manifest with the SHA-256 of each. Never a pickle.

An artifact is a folder named by its version. `write` creates it in one rename; `read_manifest` and
`verify` reject a damaged one *before* anything is loaded, because many damaged FAISS files load
without an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from afterclick.arrays import AnyArray
from afterclick.errors import BadArtifact
from afterclick.io.files import staged_folder

FORMAT = 3
"""3: indexes name items by index; 2: by position; 1: the ranker is LightGBM's text."""
MANIFEST = "manifest.json"
FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""Names of an artifact's files: no paths, so that a fetch writes to its own folder only."""
CHUNK = 1 << 20
"""Bytes hashed or copied at a time."""
Throttle = Callable[[], object]
"""Called after each chunk; may sleep, to leave the processor to other work."""


def no_throttle() -> None:
    """Do not throttle."""


class FileEntry(BaseModel):
    model_config = ConfigDict(frozen=True)

    sha256: str
    bytes: int


class Manifest(BaseModel):
    """Files, parameters, metrics and lineage of an artifact."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    version: str
    created: str
    items: int
    cut_ms: int | None = None
    """Event time from which the holdout model of this version has seen nothing."""
    files: dict[Annotated[str, StringConstraints(pattern=FILE_NAME)], FileEntry]
    """File name → hash and size; the manifest itself is not among them."""
    parameters: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    lineage: dict[str, Any] = {}


def write(root: Path, version: str, fill: Callable[[Path], None], **facts: Any) -> tuple[Path, str]:
    """Write the artifact `root/version` from the files that `fill(folder)` creates.

    `facts`: the manifest's items, cut_ms, created, parameters, metrics, lineage. Returns the folder
    and the SHA-256 of its manifest. Raises FileExistsError for an existing version.
    """
    target = root / version
    if target.exists():
        raise FileExistsError(f"artifact {target} exists; versions are written once")
    with staged_folder(target) as folder:
        fill(folder)
        files = {
            path.name: FileEntry(sha256=sha256(path), bytes=path.stat().st_size)
            for path in sorted(folder.iterdir())
        }
        manifest = Manifest(version=version, files=files, **facts)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1))
    return target, sha256(target / MANIFEST)


def read_manifest(folder: Path, expected_sha256: str | None = None) -> Manifest:
    """The manifest of an artifact. Raises BadArtifact if it is missing or invalid."""
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadArtifact(f"{path}: cannot be read ({error.strerror}); publish it again") from None
    if expected_sha256 and hashlib.sha256(raw).hexdigest() != expected_sha256:
        raise BadArtifact(f"{path}: differs from the published manifest; publish it again")
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise BadArtifact(f"{path}: is not a manifest ({reason}); publish it again") from None
    if MANIFEST in manifest.files:
        raise BadArtifact(f"{path}: lists itself among its files; publish it again")
    if manifest.format != FORMAT:
        raise BadArtifact(
            f"{path}: format {manifest.format}, expected {FORMAT}; train the model again"
        )
    return manifest


def verify(folder: Path, manifest: Manifest, throttle: Throttle = no_throttle) -> None:
    """Check size and SHA-256 of every file. Raises BadArtifact naming the first that differs."""
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry.bytes:
            raise BadArtifact(f"{path}: missing, or its size differs from the manifest")
        if sha256(path, throttle) != entry.sha256:
            raise BadArtifact(f"{path}: damaged: its SHA-256 differs from the manifest")


def load_array(
    folder: Path, name: str, throttle: Throttle = no_throttle, *, mapped: bool = False
) -> AnyArray:
    """The array in `<name>.npy`; never pickled. Raises BadArtifact.

    `mapped`: its pages are those of the file, which processes share; written ones are copied first.
    Truncating a mapped file ends the process, so by default the array is read into memory.
    """
    path = folder / f"{name}.npy"
    try:
        # not "r": kernels would be compiled again for arrays that cannot be written
        file_array: np.memmap = np.load(path, mmap_mode="c", allow_pickle=False)
        return np.asarray(file_array) if mapped else _read(path, file_array, throttle)
    except (OSError, ValueError) as error:
        raise BadArtifact(f"{path}: cannot be read: {error}") from None


def _read(path: Path, file_array: np.memmap, throttle: Throttle) -> AnyArray:
    """A copy of a mapped array, read from its file. Raises OSError, ValueError."""
    array: AnyArray = np.empty_like(file_array, subok=False)
    raw = array.reshape(-1, order="A").view(np.uint8).data
    with path.open("rb") as file:
        file.seek(file_array.offset)
        for start in range(0, len(raw), CHUNK):
            part = raw[start : start + CHUNK]
            if file.readinto(part) != len(part):
                raise ValueError("unexpected end of file")
            throttle()
    return array


def sha256(path: Path, throttle: Throttle = no_throttle) -> str:
    """The SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            throttle()
    return digest.hexdigest()

"""An artifact is whole and unharmed, or it is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from afterclick import artifact
from afterclick.errors import BadArtifact

FACTS = {"created": "2026-01-01T00:00:00Z", "items": 3}


def fill(folder: Path) -> None:
    np.save(folder / "als_item_factors.npy", np.arange(6, dtype=np.float32).reshape(3, 2))
    (folder / "ranker.txt").write_text("tree\n")


def published(root: Path) -> tuple[Path, str]:
    return artifact.write(root, "v1", fill, **FACTS)


def test_a_written_artifact_is_read_back(tmp_path: Path) -> None:
    folder, digest = published(tmp_path)
    manifest = artifact.read_manifest(folder, digest)
    artifact.verify(folder, manifest)
    assert manifest.version == "v1"
    assert set(manifest.files) == {"als_item_factors.npy", "ranker.txt"}
    assert artifact.load_array(folder, "als_item_factors").shape == (3, 2)


@pytest.mark.parametrize("position", [0, 40, -1])
def test_one_changed_byte_is_rejected(tmp_path: Path, position: int) -> None:
    folder, _ = published(tmp_path)
    path = folder / "als_item_factors.npy"
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BadArtifact, match=r"als_item_factors\.npy: damaged"):
        artifact.verify(folder, artifact.read_manifest(folder))


def test_a_missing_file_is_rejected(tmp_path: Path) -> None:
    folder, _ = published(tmp_path)
    (folder / "ranker.txt").unlink()
    with pytest.raises(BadArtifact, match="missing"):
        artifact.verify(folder, artifact.read_manifest(folder))


def test_a_manifest_that_differs_from_the_published_one_is_rejected(tmp_path: Path) -> None:
    folder, digest = published(tmp_path)
    path = folder / artifact.MANIFEST
    path.write_text(path.read_text().replace('"items": 3', '"items": 4'))
    artifact.read_manifest(folder)  # the control: without the hash it is accepted
    with pytest.raises(BadArtifact, match="differs from the published manifest"):
        artifact.read_manifest(folder, digest)


def test_another_format_is_rejected(tmp_path: Path) -> None:
    folder, _ = published(tmp_path)
    path = folder / artifact.MANIFEST
    path.write_text(path.read_text().replace('"format": 3', '"format": 1'))
    with pytest.raises(BadArtifact, match="format 1, expected 3; train the model again"):
        artifact.read_manifest(folder)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        fill(folder)
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        artifact.write(tmp_path, "v1", half, **FACTS)
    assert list(tmp_path.iterdir()) == []


def test_a_version_is_never_written_twice(tmp_path: Path) -> None:
    published(tmp_path)
    with pytest.raises(FileExistsError):
        published(tmp_path)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadArtifact, match="evil"):
        artifact.load_array(tmp_path, "evil")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(3, 2),
        np.asfortranarray(np.arange(6.0).reshape(3, 2)),
        np.array(["a", "bcd"]),
        np.zeros((0, 4), np.float32),
        np.array(2.5),
    ],
    ids=["rows", "columns", "text", "empty", "one number"],
)
def test_an_array_is_read_into_memory_unchanged(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "array.npy", array)
    found = artifact.load_array(tmp_path, "array")
    (tmp_path / "array.npy").write_bytes(b"")
    np.testing.assert_array_equal(found, array)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert type(found) is np.ndarray


def test_a_mapped_array_is_equal_and_writing_to_it_leaves_the_file(tmp_path: Path) -> None:
    path, numbers = tmp_path / "array.npy", np.arange(6.0).reshape(3, 2)
    np.save(path, numbers)
    found = artifact.load_array(tmp_path, "array", mapped=True)
    np.testing.assert_array_equal(found, numbers)
    assert type(found) is np.ndarray
    assert (found.flags.writeable, found.flags.c_contiguous) == (True, True), "as the kernels need"
    with path.open("r+b") as file:  # the control: its pages are those of the file
        file.seek(-8, 2)
        file.write(np.float64(7.5).tobytes())
    assert found[2, 1] == 7.5
    found[0] = -1.0
    assert np.load(path)[0].tolist() == [0.0, 1.0]


def test_the_throttle_is_called_after_every_chunk(tmp_path: Path) -> None:
    numbers = np.arange(3 * artifact.CHUNK / 8)
    np.save(tmp_path / "array.npy", numbers)
    calls: list[str] = []
    digest = artifact.sha256(tmp_path / "array.npy", lambda: calls.append("hashed"))
    assert digest == artifact.sha256(tmp_path / "array.npy")
    array = artifact.load_array(tmp_path, "array", lambda: calls.append("copied"))
    np.testing.assert_array_equal(array, numbers)
    assert calls.count("hashed") == 4  # a header, and three chunks of numbers
    assert calls.count("copied") == 3


def test_a_truncated_file_is_rejected(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.arange(100.0))
    with (tmp_path / "array.npy").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(BadArtifact, match="cannot be read"):
        artifact.load_array(tmp_path, "array")

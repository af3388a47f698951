"""Files and folders that appear whole, and locks that end with their process."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from afterclick.errors import AlreadyRunning
from afterclick.io.files import (
    PRIVATE,
    file_lock,
    lock_owner,
    private_folder,
    staged_file,
    staged_folder,
    write_atomically,
)
from tests.waiting import wait_until


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "status.json"
    write_atomically(path, "old")
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["status.json"]


def test_only_the_owner_reads_a_home_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    assert home.stat().st_mode & PRIVATE
    private_folder(home)
    private_folder(tmp_path / "new")
    write_atomically(home / "status.json", "new")
    with staged_folder(home / "v1"):
        pass
    os.mkfifo(home / "control", 0o644)  # the control: what does not go through these functions
    modes = {path.name: path.stat().st_mode & PRIVATE for path in (home, *home.iterdir())}
    assert modes == {"home": 0, "status.json": 0, "v1": 0, "control": 0o044}
    assert not (tmp_path / "new").stat().st_mode & PRIVATE


def test_an_error_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    write_atomically(path, "old")
    with pytest.raises(FileNotFoundError), staged_file(path) as staging:
        staging.rename(tmp_path / "missing" / "rows")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "versions" / "v1"
    with staged_folder(target) as folder:
        (folder / "rows").write_text("1")
        assert not target.exists()
    assert (target / "rows").read_text() == "1"
    assert list(target.parent.iterdir()) == [target]


def test_an_error_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged_folder(tmp_path / "v1") as folder:
        (folder / "missing" / "rows").write_text("half")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "v1") as folder:
        (folder / "rows").write_text("first")
    with pytest.raises(FileExistsError), staged_folder(tmp_path / "v1") as folder:
        (folder / "rows").write_text("second")
    assert (tmp_path / "v1" / "rows").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["v1"]


def test_a_held_lock_raises_and_names_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "home" / "training.lock"
    assert lock_owner(path) is None
    with file_lock(path, owner="train (process 7)"):
        assert lock_owner(path) == "train (process 7)"
        with (
            pytest.raises(AlreadyRunning, match="wait for it"),
            file_lock(path, busy="train is running; wait for it"),
        ):
            pass
        assert lock_owner(path) == "train (process 7)"
    assert lock_owner(path) is None
    with file_lock(path):
        assert lock_owner(path) == ""


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    child = multiprocessing.get_context("spawn").Process(target=_hold_forever, args=(path,))
    child.start()
    wait_until((tmp_path / "held").exists)
    assert lock_owner(path) == "other"
    child.kill()
    child.join()
    with file_lock(path, owner="mine"):
        assert lock_owner(path) == "mine"


def _hold_forever(path: Path) -> None:
    with file_lock(path, owner="other"):
        (path.parent / "held").touch()
        multiprocessing.Event().wait()

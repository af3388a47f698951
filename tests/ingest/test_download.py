"""Downloads resume after a lost connection, and incomplete ones are never used."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from afterclick.errors import BadInput, Unavailable
from infra.embedded.server import free_port
from ingest.download import RetryPolicy, download, official_urls
from tests.ingest.web import FileServer, serving

CONTENT = random.Random(1).randbytes(3_000_000)
QUICK = RetryPolicy(connect_s=2, read_s=5, attempts=3, pause_s=0.01)


def test_a_download_resumes_after_four_lost_connections(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    with serving(FileServer(CONTENT, cut_after=600_000, cuts=4)) as server:
        path = download(server.url, tmp_path, QUICK, lambda *progress: seen.append(progress))
    assert path.read_bytes() == CONTENT
    assert server.requested_ranges == [None, *(f"bytes={n * 600_000}-" for n in range(1, 5))]
    assert seen[-1] == ("file.csv", len(CONTENT), len(CONTENT))
    assert [p.name for p in tmp_path.iterdir()] == ["file.csv"]


def test_a_failed_download_resumes_in_the_next_run(tmp_path: Path) -> None:
    with serving(FileServer(CONTENT, cut_after=1_000_000, cuts=1)) as server:
        server.failures = 0
        with pytest.raises(Unavailable, match="run the command again to resume"):
            _cut_and_fail(server, tmp_path)
        assert not (tmp_path / "file.csv").exists()
        server.failures, server.requested_ranges = 0, []
        assert download(server.url, tmp_path, QUICK).read_bytes() == CONTENT
        assert server.requested_ranges == ["bytes=1000000-"]


def _cut_and_fail(server: FileServer, folder: Path) -> None:
    def fail_from_now_on(*_: object) -> None:
        server.failures = 99

    download(server.url, folder, QUICK, fail_from_now_on)


def test_a_server_without_ranges_starts_over(tmp_path: Path) -> None:
    with serving(FileServer(CONTENT, cut_after=500_000, cuts=1, ranges=False)) as server:
        assert download(server.url, tmp_path, QUICK).read_bytes() == CONTENT


def test_a_file_changed_on_the_server_starts_over(tmp_path: Path) -> None:
    with serving(FileServer(CONTENT, cut_after=500_000, cuts=1)) as server:
        with pytest.raises(Unavailable):
            _cut_and_fail(server, tmp_path)
        server.failures, server.content, server.etag = 0, CONTENT[::-1], '"v2"'
        assert download(server.url, tmp_path, QUICK).read_bytes() == CONTENT[::-1]


def test_a_complete_partial_file_is_used(tmp_path: Path) -> None:
    with serving(FileServer(CONTENT, cut_after=500_000, cuts=1)) as server:
        with pytest.raises(Unavailable):
            _cut_and_fail(server, tmp_path)
        (tmp_path / "file.csv.part").write_bytes(CONTENT)
        server.failures = 0
        assert download(server.url, tmp_path, QUICK).read_bytes() == CONTENT


def test_an_existing_file_is_not_downloaded_again(tmp_path: Path) -> None:
    (tmp_path / "file.csv").write_text("mine")
    with serving(FileServer(CONTENT)) as server:
        assert download(server.url, tmp_path, QUICK).read_text() == "mine"
        assert server.requested_ranges == []


def test_a_server_without_data_fails_the_download(tmp_path: Path) -> None:
    with serving(FileServer(CONTENT, failures=99)) as server:
        with pytest.raises(Unavailable, match="HTTP 503"):
            download(server.url, tmp_path, QUICK)
        assert len(server.requested_ranges) == QUICK.attempts


def test_without_internet_the_error_is_immediate(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        download(f"http://127.0.0.1:{free_port()}/x.csv", tmp_path, QUICK)


def test_an_unknown_name_is_rejected_with_the_known_ones() -> None:
    assert official_urls("Electronics")[0].endswith("/ratings_Electronics.csv")
    with pytest.raises(BadInput, match="electronics"):
        official_urls("toys")

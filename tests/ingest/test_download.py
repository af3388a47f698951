"""A download survives a bad connection and never passes for complete when it is not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from afterclick.errors import BadInput, Unavailable
from infra.embedded.ports import free_port
from ingest.download import RetryPolicy, download, official_urls
from tests.ingest.web import FileServer, serving

CONTENT = random.Random(1).randbytes(3_000_000)
QUICK = RetryPolicy(connect_s=2, read_s=5, attempts=3, pause_s=0.01)


def test_a_connection_cut_four_times_is_gone_on_with(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    with serving(FileServer(CONTENT, cut_after=600_000, cuts=4)) as server:
        path = download(server.url, tmp_path, QUICK, lambda *progress: seen.append(progress))
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, *(f"bytes={n * 600_000}-" for n in range(1, 5))]
    assert seen[-1] == ("file.csv", len(CONTENT), len(CONTENT))
    assert [p.name for p in tmp_path.iterdir()] == ["file.csv"]


def test_a_download_given_up_is_gone_on_with_another_day(tmp_path: Path) -> None:
    with serving(FileServer(CONTENT, cut_after=1_000_000, cuts=1)) as server:
        server.failures = 0
        with pytest.raises(Unavailable, match="run the command again to resume"):
            _cut_and_fail(server, tmp_path)
        assert not (tmp_path / "file.csv").exists()
        server.failures, server.asked = 0, []
        assert download(server.url, tmp_path, QUICK).read_bytes() == CONTENT
        assert server.asked == ["bytes=1000000-"]


def _cut_and_fail(server: FileServer, folder: Path) -> None:
    def fail_from_now_on(*_: object) -> None:
        server.failures = 99

    download(server.url, folder, QUICK, fail_from_now_on)


def test_a_server_without_ranges_starts_over(tmp_path: Path) -> None:
    with serving(FileServer(CONTENT, cut_after=500_000, cuts=1, ranges=False)) as server:
        assert download(server.url, tmp_path, QUICK).read_bytes() == CONTENT


def test_a_file_that_changed_in_between_is_not_stitched_together(tmp_path: Path) -> None:
    with serving(FileServer(CONTENT, cut_after=500_000, cuts=1)) as server:
        with pytest.raises(Unavailable):
            _cut_and_fail(server, tmp_path)
        server.failures, server.content, server.etag = 0, CONTENT[::-1], '"v2"'
        assert download(server.url, tmp_path, QUICK).read_bytes() == CONTENT[::-1]


def test_a_part_that_was_complete_already_is_taken(tmp_path: Path) -> None:
    with serving(FileServer(CONTENT, cut_after=500_000, cuts=1)) as server:
        with pytest.raises(Unavailable):
            _cut_and_fail(server, tmp_path)
        (tmp_path / "file.csv.part").write_bytes(CONTENT)
        server.failures = 0
        assert download(server.url, tmp_path, QUICK).read_bytes() == CONTENT


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "file.csv").write_text("mine")
    with serving(FileServer(CONTENT)) as server:
        assert download(server.url, tmp_path, QUICK).read_text() == "mine"
        assert server.asked == []


def test_a_server_that_brings_nothing_is_given_up(tmp_path: Path) -> None:
    with serving(FileServer(CONTENT, failures=99)) as server:
        with pytest.raises(Unavailable, match="HTTP 503"):
            download(server.url, tmp_path, QUICK)
        assert len(server.asked) == QUICK.attempts


def test_no_internet_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        download(f"http://127.0.0.1:{free_port()}/x.csv", tmp_path, QUICK)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    assert official_urls("Electronics")[0].endswith("/ratings_Electronics.csv")
    with pytest.raises(BadInput, match="electronics"):
        official_urls("toys")

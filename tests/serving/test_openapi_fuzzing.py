"""Schemathesis sends requests that the OpenAPI document allows and forbids."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import httpx2
import pytest

from afterclick.settings import Settings
from infra.embedded.server import LOOPBACK
from tests.serving import shop
from tests.serving.running import Running
from tests.serving.test_auth import KEYS, guarded
from tests.waiting import wait_until

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance"
)
SECRET = "a secret that is long enough for HS256"


@pytest.fixture
def keyed_shop(settings: Settings) -> Iterator[Running]:
    """A shop with keys and tokens, so that each route can be reached."""
    with Running(guarded(settings, token_secret=SECRET)) as api:
        api.ready()
        shop.publish_items(settings, shop.catalogue())
        shop.publish(settings, *shop.write(settings, "m1"))
        wait_until(lambda: api.service.snapshots.current.loaded.version == "m1")
        yield api


@pytest.mark.slow
def test_responses_to_generated_requests_match_the_document(
    keyed_shop: Running, tmp_path: Path
) -> None:
    command = [
        *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
        *("run", f"{keyed_shop.url}/openapi.json", "--checks", CHECKS, "--max-examples", "8"),
        *("--phases", "examples,coverage,fuzzing", "--seed", "7", "--max-time", "60"),
        *("--header", f"Authorization: Bearer {KEYS['admin']}"),
        *("--generation-database", "none", "--continue-on-failure", "--no-color", "--no-shrink"),
    ]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    assert "Test cases" in found.stdout or "generated" in found.stdout, found.stdout[-2000:]
    print(found.stdout)


@pytest.mark.parametrize(
    ("target", "status"), [("/popular?category=" + "x" * 70_000, 431), ("popular", 400)]
)
def test_malformed_http_is_answered_as_documented(
    hostile_api: Running, target: str, status: int
) -> None:
    document = httpx2.get(f"{hostile_api.url}/openapi.json").json()
    connection = HTTPConnection(LOOPBACK, hostile_api.port, timeout=10)
    connection.request("GET", target)
    answer = connection.getresponse()
    documented = document["paths"]["/popular"]["get"]["responses"][str(answer.status)]["content"]
    assert answer.status == status
    assert answer.headers.get_content_type() in documented
    connection.close()

"""Schemathesis reads the OpenAPI document and sends what it allows and what it does not."""

from __future__ import annotations

import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import httpx2
import pytest

from infra.embedded.ports import LOOPBACK
from tests.serving.running import Running

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.slow
def test_every_answer_to_generated_requests_is_as_documented(shop_api: Running, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
        *("run", f"{shop_api.url}/openapi.json", "--checks", CHECKS, "--max-examples", "8"),
        *("--phases", "examples,coverage,fuzzing", "--seed", "7", "--max-time", "60"),
        # what these start is tested in test_admin.py: trainings, shoppers, faults
        *("--exclude-path-regex", "^/admin/(simulator|models|reconcile|break)"),
        *("--generation-database", "none", "--continue-on-failure", "--no-color", "--no-shrink"),
    ]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    assert "Test cases" in found.stdout or "generated" in found.stdout, found.stdout[-2000:]


def test_a_target_that_is_no_http_is_answered_as_documented(shop_api: Running) -> None:
    document = httpx2.get(f"{shop_api.url}/openapi.json").json()
    connection = HTTPConnection(LOOPBACK, shop_api.port, timeout=10)
    connection.request("GET", f"/popular?category={'x' * 70_000}")
    answer = connection.getresponse()
    documented = document["paths"]["/popular"]["get"]["responses"][str(answer.status)]["content"]
    assert answer.status == 400
    assert answer.headers.get_content_type() in documented
    connection.close()

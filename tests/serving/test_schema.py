"""Schemathesis reads the OpenAPI document and sends what it allows and what it does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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

"""Requests generated from the OpenAPI description cause no failure and no undocumented response."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

_CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,negative_data_rejection,unsupported_method"
)
_SECONDS = 15


@pytest.mark.slow
def test_no_generated_request_makes_the_server_fail(served, tmp_path):
    program = shutil.which("schemathesis", path=sysconfig.get_path("scripts")) or shutil.which("schemathesis")
    command = [program, "run", f"{served.url}openapi.json", "--max-time", str(_SECONDS), "--checks", _CHECKS]
    command += ["--no-color", "--continue-on-failure", "--warnings", "off", "--generation-database", ":memory:"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert served.client.get("/health/ready").status_code == 200
    assert not list(Path(tmp_path).glob("schemathesis-report*"))

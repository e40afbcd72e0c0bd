"""Requests drawn by Schemathesis from /openapi.json: each is answered as the document says, and none with a 5xx."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.api import Api, running_api, thoughtful

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None,
    reason="Schemathesis is not installed; `make test-clients` installs it",
)

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
N_REQUESTS = 500


@pytest.fixture
def short_api(tmp_path: Path) -> Iterator[Api]:
    """An API whose answers are short, as many are asked for."""
    with running_api(tmp_path, thoughtful(tmp_path), limits={"max_tokens": 4}) as api:
        yield api


def test_requests_drawn_from_the_document_are_answered_as_it_says(short_api: Api, tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--no-color", "run", f"{short_api.url}/openapi.json"),
            *("--phases", "coverage,fuzzing", "--checks", ",".join(CHECKS), "--max-examples", "25", "--seed", "1"),
            *("--request-timeout", "60", "--warnings", "off"),
        ],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    drawn = re.search(r"(\d+) generated", ended.stdout)
    assert drawn is not None
    assert int(drawn[1]) >= N_REQUESTS

"""A cluster of four nodes whose model has a chat template, for other people's clients of the API."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from clients.asked import DIM
from integration.api import Api, running_api, thoughtful

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # LiteLLM fetches a list of prices otherwise
os.environ["ANONYMIZED_TELEMETRY"] = "false"


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.clients)  # of this folder alone: others have another conftest.py


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    with running_api(folder, thoughtful(folder, n_kv_heads=4, dim=DIM), 4) as api:
        yield api

"""Waits that could have had no end: each ends in an error that says what was waited for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq
from tiny import tiny_spec, write_tiny_model

from dllama_zmq.errors import ClusterDefect
from dllama_zmq.formats import ModelFile
from dllama_zmq.models import Run
from dllama_zmq.root.generation import _evaluate_and_choose
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.root.sampler import Sampler, Sampling
from dllama_zmq.spec import FloatType

SPEC = tiny_spec(dim=128, hidden_dim=256, n_heads=8, weight_type=FloatType.Q40)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFile]:
    with write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.m", SPEC) as file:
        yield file


def test_a_row_of_which_no_token_can_be_chosen_is_an_error_and_not_asked_for_again(model: ModelFile) -> None:
    root = Root(zmq.Context.instance(), model, RootSettings(kernels="numpy"))
    with pytest.raises(ClusterDefect, match="no token could be chosen"):
        _evaluate_and_choose(root, Sampler(Sampling()), Run(0, 0, 1), [1], n_ids=0)

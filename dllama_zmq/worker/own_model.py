"""This computer's own copy of the model, for the slices whose hashes are those of the root's."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from dllama_zmq.errors import DllamaError
from dllama_zmq.quants import U8
from dllama_zmq.sharding import Plan
from dllama_zmq.spec import TensorSpec

if TYPE_CHECKING:
    from dllama_zmq.formats import ModelFile

logger = logging.getLogger(__name__)


class OwnModel:
    """An open model from which `node`'s slices under `plan` are read."""

    def __init__(self, model: ModelFile, plan: Plan, node: int) -> None:
        self._model, self._plan, self._node = model, plan, node

    @classmethod
    def open(cls, path: Path, plan: Plan, node: int) -> OwnModel | None:
        """Open the model at `path`; None, and a line in the log, if it cannot be opened or has other tensors."""
        from dllama_zmq.formats import open_model  # 0.1 s and 10 MB, which a worker without a model does not need

        try:
            model = open_model(path)
            if model.spec.weight_type is not plan.spec.weight_type:  # floats may be quantized as they are read
                model.close()
                model = open_model(path, plan.spec.weight_type)
        except DllamaError as error:
            logger.warning("the weights come over the bus: %s", error)
            return None
        own = {tensor.name: (tensor.shape(model.spec), tensor.float_type) for tensor in model.tensors}
        if any(own.get(t.name) != (t.shape(plan.spec), t.float_type) for t in plan.shard_tensors()):
            logger.warning("the weights come over the bus: %s is not the root's model, its tensors are others", path)
            model.close()
            return None
        return cls(model, plan, node)

    def read(self, tensor: TensorSpec, sha256: str) -> U8 | None:
        """The bytes of the slice of `tensor`; None, and a line in the log, if their hash differs."""
        try:
            matrix = self._model.read_unchecked(tensor.name, *self._plan.region(tensor, self._node)).contiguous()
            data = matrix.data.reshape(-1)
            if hashlib.sha256(data.data).hexdigest() == sha256:
                return data
            matrix.check()
        except DllamaError as error:
            logger.warning("the weights come over the bus: %s", error)
            return None
        logger.warning(
            "the weights come over the bus: %s is not the root's model, %s differs", self._model.path, tensor.name
        )
        return None

    def close(self) -> None:
        """Close the file, and release its pages."""
        self._model.forget_pages()
        self._model.close()

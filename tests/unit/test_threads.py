"""Types that several threads of a program may convert to at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import importlib, sys, msgspec
kind = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
learned = []
sys.setprofile(lambda frame, event, of: learned.append(frame.f_code.co_name))
try:
    msgspec.convert({}, kind)
except msgspec.ValidationError:
    pass
sys.setprofile(None)
print([name for name in learned if name in ("get_class_annotations", "get_dataclass_info")])
"""


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("dllama_zmq.spec", "ModelSpec"),
        ("dllama_zmq.cluster", "Cluster"),
        ("dllama_zmq.launch.registry", "Record"),
        ("dllama_zmq.tokenizer.json_file", "JsonFile"),
        ("dllama_zmq.formats.meta.params", "Params"),
    ],
)
def test_msgspec_learns_a_type_when_its_module_is_imported_and_not_in_one_of_several_threads(
    module: str, name: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, module, name], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")

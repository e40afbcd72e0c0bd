"""Which kernels there are, which a model needs, and so what a first token has to compile."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version

import pytest
from msgspec.structs import replace
from numba.core.codegen import JitEngine
from tiny import tiny_spec

from dllama_zmq.bus.native.exchange import EXCHANGE_KERNELS
from dllama_zmq.kernels import KVType, Needs
from dllama_zmq.kernels.simd.build import all_kernels, object_of
from dllama_zmq.kernels.simd.catalog import GROUPS, NAMES, cost_s, group_of, needed
from dllama_zmq.kernels.simd.store import release
from dllama_zmq.sharding import kernel_needs
from dllama_zmq.spec import FloatType, ModelSpec

FIRST_TOKEN = [
    "run",
    "serve",
    "stop",
    "spin",
    "run_sequences",
    "rms_norm",
    "quantize",
    "product_q40",
    "repack_q40",
    "store_kv_f16",
    "attend_f16",
    "attend_by_heads",
]
"""All that one node compiles before the first token of a Q40 model. Longer is slower on every new computer."""
MAX_COST_S = 6.0


def needs_of(spec: ModelSpec, n_nodes: int = 1, kv_type: KVType = "f16") -> list[str]:
    return needed(kernel_needs(spec, n_nodes, kv_type, EXCHANGE_KERNELS))


def test_the_catalog_has_every_kernel_that_can_be_compiled_and_no_other():
    import_module("dllama_zmq.bus.native.kernel")  # which has one of its own
    assert sorted(NAMES) == sorted(all_kernels())


def test_a_q40_model_compiles_this_before_its_first_token_and_nothing_else():
    spec = tiny_spec(weight_type=FloatType.Q40)
    assert needs_of(spec) == FIRST_TOKEN
    assert needs_of(spec, n_nodes=4) == [*FIRST_TOKEN, *EXCHANGE_KERNELS]
    assert cost_s(needs_of(spec, n_nodes=4)) < MAX_COST_S


@pytest.mark.parametrize("kind", list(FloatType))
def test_a_model_compiles_the_products_of_its_own_types(kind):
    name = kind.name.lower()
    products = [kernel for kernel in needs_of(tiny_spec(weight_type=kind)) if kernel.startswith("product_")]
    assert products == [f"product_{name}"]


def test_types_of_single_tensors_and_the_kv_cache_and_experts_count():
    spec = replace(tiny_spec(weight_type=FloatType.Q40), stored=(("head", FloatType.Q80),))
    names = needs_of(spec, kv_type="f32")
    assert {"product_q40", "product_q80", "attend_f32"} <= set(names)
    assert "attend_f16" not in names
    experts = needed(Needs(frozenset({FloatType.Q40, FloatType.Q80}), frozenset({FloatType.Q40})))
    assert [name for name in experts if name.startswith("experts_")] == ["experts_gated_q40", "experts_down_q40"]


def test_one_name_fetches_every_file_that_is_needed_beside_it():
    assert group_of("repack_q41") == ("quantize", "product_q41", "repack_q41")
    assert all(name in group_of(name) for name in (*NAMES, *EXCHANGE_KERNELS))
    assert sum(map(cost_s, GROUPS.values())) > 0
    with pytest.raises(KeyError):
        group_of("nothing")


def test_numba_makes_no_machine_code_of_the_functions_within_a_kernel(monkeypatch):
    object_of("spin")  # numba is set up with its own runtime, which it does compile
    compiled = []
    monkeypatch.setattr(JitEngine, "finalize_object", lambda engine: compiled.append(engine))
    assert object_of("attend_by_heads")
    assert compiled == []


@pytest.mark.parametrize("package", ["numba", "llvmlite", "typer"])  # typer has no file of its version
def test_compiled_code_is_named_after_the_release_of_what_compiled_it(package: str) -> None:
    assert version(package).encode() in release(package)

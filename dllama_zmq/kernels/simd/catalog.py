"""Every kernel of this package by name: what is needed together, and what compiling it costs. Knows no compiler."""

from __future__ import annotations

from collections.abc import Iterable

from dllama_zmq.kernels.needs import Needs
from dllama_zmq.kernels.simd.layout import BLOCKS, REPACKED_AS
from dllama_zmq.kernels.simd.registry import module_of

GROUPS: dict[str, tuple[str, ...]] = {
    "base": ("run", "serve", "stop", "spin", "run_sequences", "rms_norm"),
    "sums": ("add_up",),
    "memory": ("read_memory",),
    **{
        kind: (*(("quantize",) if kind in BLOCKS else ()), f"product_{kind}", f"repack_{repacking}")
        for kind, repacking in REPACKED_AS.items()
    },
    **{f"experts_{kind}": (f"experts_gated_{kind}", f"experts_down_{kind}") for kind in REPACKED_AS},
    **{f"kv_{kind}": (f"store_kv_{kind}", f"attend_{kind}", "attend_by_heads") for kind in ("f16", "f32")},
}
"""Kernels that are needed together."""

NAMES = tuple(dict.fromkeys(name for group in GROUPS.values() for name in group))

_COST_S = {
    "product": 1.0,
    "attend_f": 0.9,
    "store_kv": 0.35,
    "quantize": 0.35,
    "run": 0.3,
    "experts": 0.3,
    "rms_norm": 0.2,
    "add_up": 0.2,
    "repack": 0.15,
}
"""Seconds to compile a kernel on a core of tools/BENCHMARKS.md, by the beginning of its name."""
_LEAST_S = 0.08
_OTHER_PACKAGE_S = 0.3


def cost_s(names: Iterable[str]) -> float:
    """Seconds to compile these kernels on one core of tools/BENCHMARKS.md."""
    return sum(map(_cost_s, names))


def group_of(name: str) -> tuple[str, ...]:
    """The kernels that are needed together with `name`. KeyError if there is no such kernel."""
    if module_of(name):
        return (name,)
    for group in GROUPS.values():
        if name in group:
            return group
    raise KeyError(name)


def needed(needs: Needs) -> list[str]:
    """The kernels that a node needs."""
    groups = ["base", *sorted(kind.name.lower() for kind in needs.types), f"kv_{needs.kv_type}"]
    groups += sorted(f"experts_{kind.name.lower()}" for kind in needs.expert_types)
    return list(dict.fromkeys([*(name for group in groups for name in GROUPS[group]), *needs.kernels]))


def _cost_s(name: str) -> float:
    if module_of(name):
        return _OTHER_PACKAGE_S
    return next((cost for start, cost in _COST_S.items() if name.startswith(start)), _LEAST_S)

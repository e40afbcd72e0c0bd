"""Versions of this program and its dependencies, and the kernels that this CPU can run."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib import metadata

import zmq
from packaging.requirements import InvalidRequirement, Requirement

from dllama_zmq import __version__
from dllama_zmq.doctor.findings import Finding, ok, problem, warning
from dllama_zmq.kernels import simd_obstacle
from dllama_zmq.reporting import plural

_NAME = "dllama-zmq"


def versions() -> Iterator[Finding]:
    """This program, Python and libzmq, which must have CURVE."""
    yield ok("version", f"{_NAME} {__version__}, Python {platform.python_version()}")
    text = f"{zmq.zmq_version()}, pyzmq {zmq.pyzmq_version()}"
    if zmq.has("curve"):
        yield ok("libzmq", f"{text}, with CURVE")
    else:
        cure = "install the wheel, which has it: pip install --force-reinstall --only-binary :all: pyzmq"
        yield problem("libzmq", f"{text}, without CURVE: nothing can be encrypted", cure)


def packages() -> Iterator[Finding]:
    """The packages that this one depends on, and their required versions."""
    try:
        needed = metadata.requires(_NAME) or []
    except metadata.PackageNotFoundError:  # it runs from a source folder
        return
    n_sound, bad = 0, []
    for text in needed:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            bad.append((wanted, "is not installed"))
            continue
        if wanted.specifier.contains(found, prereleases=True):
            n_sound += 1
        else:
            bad.append((wanted, f"is {found}; expected {wanted.specifier}"))
    for wanted, what in bad:
        yield problem("packages", f"{wanted.name} {what}", f"pip install '{wanted.name}{wanted.specifier}'")
    if not bad:
        yield ok("packages", f"{plural(n_sound, 'package')}, all in the required versions")


def kernels() -> Iterator[Finding]:
    """The kernels that run here, and the faster instructions that this CPU lacks."""
    if obstacle := simd_obstacle():
        cure = f"pip install --force-reinstall {_NAME}" if "installed" in obstacle else "install a 64-bit system"
        yield warning("kernels", f"numpy, many times slower than simd: {obstacle}", cure)
        return
    from dllama_zmq.kernels.simd.host import host_cpu, host_target
    from dllama_zmq.kernels.simd.target import missing

    architecture, name, features = host_cpu()
    lacks = missing(architecture, {feature[1:] for feature in re.findall(r"\+[^,]+", features)})
    text = f"simd for {name}, products by {host_target().products}{f'; this CPU has no {lacks}' if lacks else ''}"
    if architecture == "x86_64" and host_target().dot == "plain":
        cure = "in a virtual machine, give it the computer's own CPU (QEMU: -cpu host)"
        yield warning("kernels", text, cure)
    else:
        yield ok("kernels", text)

"""Where the root's time for a token goes: its kernels by name, waiting for the others, and Python between them."""

from __future__ import annotations

from msgspec import Struct

from dllama_zmq.bench.measure import Measured

NOTE = (
    "A product's time holds the quantizing of its input; python: whatever is outside kernels and waiting; "
    "calls: of one repetition."
)


class Part(Struct, frozen=True):
    """One kernel. `share` is of the whole time; `calls` those of one repetition."""

    name: str
    ms_per_token: float
    share: float
    calls: float
    us_per_call: float


class Profile(Struct, frozen=True):
    """All repetitions of a case together. The parts, waiting and Python add up to `ms_per_token`."""

    ms_per_token: float
    parts: list[Part]
    """The kernels that ran, the longest first."""
    wait_ms_per_token: float
    wait_share: float
    python_ms_per_token: float
    python_share: float


def make_profile(measured: Measured) -> Profile | None:
    """The profile of a case that was measured with one; else None."""
    if measured.kernels is None:
        return None
    n_repetitions, wall_s = len(measured.seconds), sum(measured.seconds)
    ms = 1000 / (n_repetitions * measured.case.n_tokens)
    parts = [
        Part(name, ms * seconds, seconds / wall_s, calls / n_repetitions, 1e6 * seconds / calls)
        for name, (seconds, calls) in measured.kernels.items()
        if calls
    ]
    wait_s = measured.timing.wait_s
    python_s = wall_s - wait_s - sum(seconds for seconds, _ in measured.kernels.values())
    return Profile(
        ms_per_token=ms * wall_s,
        parts=sorted(parts, key=lambda part: -part.ms_per_token),
        wait_ms_per_token=ms * wait_s,
        wait_share=wait_s / wall_s,
        python_ms_per_token=ms * python_s,
        python_share=python_s / wall_s,
    )

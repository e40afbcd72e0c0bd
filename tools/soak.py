"""Bring a cluster up, generate, take it down, many times: rare hangs and leftovers show only in a long run.

    python tools/soak.py cluster.yaml --rounds 50

Prints the seconds of each phase of each round. Ends with exit code 1 at the first phase that fails, exceeds its time
limit, or gives another answer than the first round. The cluster is down afterwards.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

LIMITS_S = {"up": 60.0, "generate": 120.0, "down": 15.0}
PROMPT = "Once upon a time"


class Failed(Exception):
    """A phase failed."""


def run_phase(phase: str, words: Sequence[str]) -> tuple[float, str]:
    """Run a command; returns its seconds and its stdout. Raises Failed."""
    start = time.monotonic()
    try:
        # No stdin: the command must not ask anything.
        ended = subprocess.run(
            [sys.executable, "-m", "dllama_zmq", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMITS_S[phase],
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        said = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else error.stderr or ""
        raise Failed(f"{phase} did not end within {LIMITS_S[phase]:.0f} s\n{said}") from None
    if ended.returncode != 0:
        raise Failed(f"{phase} failed with exit code {ended.returncode}\n{ended.stderr}")
    return time.monotonic() - start, ended.stdout


def run_round(cluster: Path, steps: int) -> tuple[dict[str, float], str]:
    """Run all phases; returns the seconds of each, and the answer. Raises Failed."""
    seconds = {}
    seconds["up"], _ = run_phase("up", ["up", str(cluster)])
    ask = ["generate", PROMPT, "--temp", "0", "--steps", str(steps), "--cluster", str(cluster)]
    seconds["generate"], answer = run_phase("generate", ask)
    seconds["down"], _ = run_phase("down", ["down", str(cluster)])
    return seconds, answer


def soak(cluster: Path, rounds: int, steps: int) -> None:
    """Run all rounds; print a line for each, and a summary. Raises Failed."""
    first, taken = "", []
    print("round " + " ".join(f"{phase:>10}" for phase in LIMITS_S), flush=True)
    for number in range(1, rounds + 1):
        try:
            seconds, answer = run_round(cluster, steps)
        except Failed as error:
            raise Failed(f"round {number}: {error}") from None
        first = first or answer
        if answer != first:
            raise Failed(f"round {number}: another answer than in round 1\n{first!r}\n{answer!r}")
        taken.append(seconds)
        print(f"{number:5} " + " ".join(f"{seconds[phase]:8.2f} s" for phase in LIMITS_S), flush=True)
    spans = [[row[phase] for row in taken] for phase in LIMITS_S]
    words = [
        f"{phase} {min(span):.2f} / {statistics.median(span):.2f} / {max(span):.2f} s"
        for phase, span in zip(LIMITS_S, spans, strict=True)
    ]
    print(f"{rounds} rounds, no failure; min / median / max: {', '.join(words)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    parser = argparse.ArgumentParser(description="Up, generate, down, many times over.")
    parser.add_argument("cluster", type=Path, nargs="?", default=Path("cluster.yaml"), metavar="FILE")
    parser.add_argument("--rounds", type=int, default=50, metavar="N")
    parser.add_argument("--steps", type=int, default=32, metavar="N", help="tokens to generate in each round")
    args = parser.parse_args(argv)
    try:
        soak(args.cluster, args.rounds, args.steps)
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "dllama_zmq", "down", str(args.cluster)], capture_output=True, timeout=30)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

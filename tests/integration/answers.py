"""The answer that tests of a cluster's life ask for, from its start or in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from command_line import Cli, Process, read_some

from dllama_zmq.local import LocalModel

PROMPT = "once upon a time"
LEAVE_S = 15.0
NOTICE_S = 20.0


def answer(cli: Cli) -> str:
    """40 greedy tokens after PROMPT from the running cluster, asked in this process."""
    with cli.client() as client:
        return client.text(PROMPT, max_tokens=40)


@contextmanager
def long_answer(cli: Cli) -> Iterator[Process]:
    """A `generate` in mid-answer."""
    with cli.started("generate", PROMPT, "--temp", "0", "-n", "1900") as process:
        read_some(process, len(PROMPT) + 20)
        yield process


def alone(local: LocalModel, prompt: str, n_tokens: int) -> str:
    """The greedy text after `prompt`."""
    return "".join(local.generate(prompt, max_tokens=n_tokens))

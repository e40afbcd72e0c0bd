"""What takes long holds up nobody who does not wait for it: a long step, and a text that takes long to encode."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import pytest
from command_line import Cli, clean_cli
from integration.nodes import Context, inproc
from integration.services import a_root
from served import served
from tiny import tiny_spec, write_tiny_pair
from tokenizer_sources import CONFIGS, GOLDEN
from tokenizers_of import of_json

from dllama_zmq import Client
from dllama_zmq.bus.client_messages import Prefill, Started, TokenText
from dllama_zmq.errors import RequestError
from dllama_zmq.spec import FloatType

LARGE = tiny_spec(
    dim=1024, hidden_dim=4096, n_heads=8, n_kv_heads=4, n_layers=3, seq_len=2048, weight_type=FloatType.Q40
)
SMALL = tiny_spec(dim=128, hidden_dim=256, n_heads=8, vocab_size=2048, seq_len=4096, weight_type=FloatType.Q40)
N_STEPS, STEP_ROWS = 4, 128
PART = 4  # an answer comes in this part of the time that it must not wait for
ENCODE_S = 1.0  # of CPU, instead of the usual: this text takes as long as it may
TRIES = 3  # a busy machine may hold up one of them; what waits for an encoding waits in each


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A cluster of one node whose steps of STEP_ROWS rows take most of a second."""
    folder = tmp_path_factory.mktemp("slow")
    write_tiny_pair(folder, LARGE).close()
    with clean_cli(folder, folder / "tiny.m") as cli:
        cli.up(1, kernels="numpy", max_seq_len=2048)
        yield cli
        cli.down()


class Waits(NamedTuple):
    """took_s: until each first answer came, by what was asked for; it was asked for while a step of the prompt ran."""

    took_s: dict[str, list[float]]
    shortest_step_s: float


@pytest.fixture(scope="module")
def waits(slow: Cli) -> Waits:
    """Both are asked for in each step of one prompt."""
    took_s: dict[str, list[float]] = {"status": [], "generate": []}
    with slow.client() as long, slow.client() as other:
        prompt = long.generate([1, *[40] * (N_STEPS * STEP_ROWS - 1)], 1)
        steps = (answer.figures.wall_s for answer in prompt if isinstance(answer, Prefill))
        walls_s = [next(steps)]  # the next step has begun
        while len(walls_s) < N_STEPS:
            begun = time.monotonic()
            assert other.status().active == 1
            took_s["status"].append(time.monotonic() - begun)
            begun = time.monotonic()
            answers = other.generate("the cat", 1)
            assert isinstance(next(answers), Started)
            took_s["generate"].append(time.monotonic() - begun)
            answers.close()
            walls_s.append(next(steps))
        prompt.close()
    return Waits(took_s, min(walls_s))


@pytest.mark.parametrize("what", ["status", "generate"])
def test_a_long_step_delays_no_first_answer(what: str, waits: Waits) -> None:
    took_s = waits.took_s[what]
    print(f"{what}: {', '.join(f'{s * 1e3:.0f}' for s in took_s)} ms; steps of {waits.shortest_step_s:.2f} s and more")
    assert sorted(took_s)[1] < waits.shortest_step_s / PART


SPLIT = r"(?=(\d{3})+(?!\d))|\p{N}{1,3}| ?[^\s\p{N}]+|\s+(?!\S)|\s+"  # of a published file; quadratic for digits


def test_a_text_that_takes_long_to_encode_delays_no_other_stream(
    context: Context, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dllama_zmq.tokenizer.bounded.ENCODE_S", ENCODE_S)
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    file = json.loads((GOLDEN / "gpt2.json").read_text("utf-8"))
    file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    tokenizer = of_json(json.dumps(file), CONFIGS["gpt2.json"])
    with (
        write_tiny_pair(tmp_path_factory.mktemp("model"), SMALL) as model,
        a_root(context, model, [], inproc()) as root,
        served(context, root, tokenizer) as address,
        Client(address) as client,
    ):
        waits = (longest_wait_s(client, address) for _ in range(TRIES))
        assert any(wait_s < ENCODE_S / PART for wait_s in waits)


def longest_wait_s(client: Client, address: str) -> float:
    """The longest time between two tokens of `client` while a text of another takes long to encode."""
    times: list[float] = []

    def ask() -> None:
        times.append(time.monotonic())
        with Client(address) as other, pytest.raises(RequestError, match="takes longer than 1 s"):
            other.text("1" * 128_000)
        times.append(time.monotonic())

    slow, seen = threading.Thread(target=ask), list[float]()
    while len(times) < 2:  # of a fast computer, one answer after the other
        with closing(client.generate("the cat", 4000, ignore_eos=True)) as stream:
            for answer in stream:
                if isinstance(answer, TokenText):
                    seen.append(time.monotonic())
                    if len(seen) == 1:
                        slow.start()
                if len(times) == 2:
                    break
    slow.join()
    begun, ended = times
    during = [begun, *(t for t in seen if begun < t < ended), ended]
    longest_s = max(after - before for before, after in itertools.pairwise(during))
    print(f"{len(during)} tokens in {ended - begun:.1f} s, at most {longest_s * 1e3:.0f} ms apart")
    assert ended - begun >= ENCODE_S
    return longest_s

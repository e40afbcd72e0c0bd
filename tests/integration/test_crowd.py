"""Hundreds of requests of clients that also cancel and vanish: each gets what it would get alone, and nothing of them
is left in the cluster."""

from __future__ import annotations

import itertools
import random
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import pytest
from command_line import Cli, clean_cli, until

from dllama_zmq import Client
from dllama_zmq.bus.client_messages import TokenText
from dllama_zmq.client import Answer
from dllama_zmq.front.encoding import PLACES
from dllama_zmq.sampling import GREEDY, Sampling
from dllama_zmq.sources import DATA_FOLDER

SEED = 20261129
MAX_TOKENS = 16
SEEDS = (0, 0, 1)
N_CROWDS = 4
SOON_S = 60.0
MAX_MORE_BYTES = 2 << 20
"""Of three processes from one crowd to the next, the least of some: what requests leave is left by each of them, and
what the C library keeps, or the kernel gives, comes at any time. Objects are counted in test_many_requests.py."""
End: TypeAlias = Literal["whole", "cancel", "vanish"]
STORY = (
    "One winter day, Wilbur saw Bella in the green valley. Wilbur was a clever mouse, and he loved to draw pictures. "
    "Bella could swim better than anyone. Wilbur watched with big eyes. On the first day, Wilbur tried to swim, but it "
    "went badly. A crow laughed at him. Bella showed Wilbur what to do and waited patiently. "
) * 4
PROMPTS = [STORY[start : start + n] for start, n in enumerate((1, 7, 60, 200, 600, 1200))]


@dataclass(frozen=True)
class Plan:
    """A request: which prompt, how it is sampled (0: greedily), and after how many tokens its client does what."""

    prompt: int
    seed: int
    n_tokens: int
    end: End


def answers_to(client: Client, plan: Plan) -> Generator[Answer, None, None]:
    sampling = Sampling(0.8, seed=plan.seed) if plan.seed else GREEDY
    n_tokens = plan.n_tokens if plan.end == "whole" else MAX_TOKENS
    return client.generate(PROMPTS[plan.prompt], n_tokens, sampling, ignore_eos=True)


def play(address: str, plans: list[Plan], expected: dict[tuple[int, int], list[int]]) -> int:
    """One client's requests, each of which must end rightly; how many it made."""
    client = Client(address)
    for plan in plans:
        tokens: list[int] = []
        answers = answers_to(client, plan)
        for answer in answers:
            if isinstance(answer, TokenText):
                tokens.append(answer.token)
            if plan.end != "whole" and len(tokens) == plan.n_tokens:
                break
        assert tokens == expected[plan.prompt, plan.seed][: plan.n_tokens]
        if plan.end == "vanish":
            client.close()
            client = Client(address)
        answers.close()
    client.close()
    return len(plans)


def held(cli: Cli) -> dict[int, tuple[int, int]]:
    """The descriptors and threads of every process of the cluster."""
    return {process.pid: (process.num_fds(), process.num_threads()) for process in cli.processes()}


def no_more(now: dict[int, tuple[int, int]], before: dict[int, tuple[int, int]]) -> bool:
    """Whether no process holds more than `before`, but the front's threads for texts, of which there may be PLACES."""
    return now.keys() == before.keys() and all(
        now[pid][0] <= n_fds and n_threads <= now[pid][1] < n_threads + PLACES
        for pid, (n_fds, n_threads) in before.items()
    )


def bytes_of(cli: Cli) -> int:
    """The memory of the cluster's processes."""
    n_bytes: int = sum(process.memory_info().rss for process in cli.processes())
    return n_bytes


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[Cli]:
    """Two nodes with the demo model."""
    with clean_cli(tmp_path, DATA_FOLDER / "demo.m") as cli:
        cli.up(2)
        yield cli
        cli.down()


@pytest.mark.parametrize(("n_requests", "n_clients"), [(100, 16), pytest.param(500, 64, marks=pytest.mark.release)])
def test_a_crowd_gets_the_texts_of_one_and_leaves_nothing(n_requests: int, n_clients: int, crowded: Cli) -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    address = f"ipc://{crowded.home}/run/small/clients.sock"
    expected: dict[tuple[int, int], list[int]] = {}
    with crowded.client() as client:
        for prompt, seed in itertools.product(range(len(PROMPTS)), sorted(set(SEEDS))):
            answers = answers_to(client, Plan(prompt, seed, MAX_TOKENS, "whole"))
            expected[prompt, seed] = [answer.token for answer in answers if isinstance(answer, TokenText)]
    ends: list[End] = ["whole", "whole", "whole", "cancel", "vanish"]
    plans = [
        Plan(rng.randrange(len(PROMPTS)), rng.choice(SEEDS), rng.randint(1, MAX_TOKENS), rng.choice(ends))
        for _ in range(n_requests)
    ]
    before, taken = held(crowded), list[int]()
    with ThreadPoolExecutor(n_clients) as pool:
        for part in (plans[i::N_CROWDS] for i in range(N_CROWDS)):
            shares = [part[i::n_clients] for i in range(n_clients)]
            played = pool.map(lambda share: play(address, share, expected), shares)
            assert sum(played) == len(part)
            until(lambda: crowded.status().active == 0, SOON_S, "the requests of clients that have gone to end")
            taken.append(bytes_of(crowded))
    status = crowded.status()
    assert (status.queued, status.kv.in_use, status.requests) == (0, 0, [])
    until(lambda: no_more(held(crowded), before), SOON_S, "what the clients held to be given back")
    more = [after - before for before, after in itertools.pairwise(taken)]  # the first crowd's may be kept
    print(f"{', '.join(f'{n / 1e6:.1f}' for n in more)} MB more")
    assert min(more) < MAX_MORE_BYTES
